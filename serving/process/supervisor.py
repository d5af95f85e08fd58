"""A parent process and the workers that it forks on one listening socket.

What the parent has loaded is in the workers' memory without being copied. A worker that dies is
replaced; on SIGHUP all are replaced, one after the other; on SIGTERM each finishes what it has
begun.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI

from feature_repo.errors import FunnelError
from serving.observability.multiprocess import shared_by_workers
from serving.process.draining_server import DrainingServer

_log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1
_SWITCH_S = 0.0005
"""How long a thread keeps the GIL from one that comes back from FAISS.

Python's default is 5 ms, which is two requests.
"""
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_START_S = 60.0
_STOP_S = 30.0
_PAUSE_S = 0.05

Ready = Callable[[], None]
"""Called by a worker once it can be asked."""


class WorkerFailed(FunnelError):  # noqa: N818 - a state, said to the user
    """A worker ended while it was starting; its own words are above."""


def run_workers(
    create_app: Callable[[], FastAPI],
    listening: socket.socket,
    count: int,
    *,
    helper: Callable[[], None] | None = None,
    started: Callable[[], None] = lambda: None,
) -> None:
    """Serve an app from forked workers until SIGTERM or SIGINT.

    Args:
        create_app: called by each worker.
        listening: the socket that all workers accept connections of; it is closed at the end.
        count: number of workers.
        helper: run by one process more, which takes no connections.
        started: called once when all workers can be asked.

    Raises:
        WorkerFailed: a worker could not start.

    """

    def work(ready: Ready) -> None:
        sys.setswitchinterval(_SWITCH_S)
        DrainingServer(create_app(), ready).run(sockets=[listening])

    def help_workers(_: Ready) -> None:
        listening.close()
        if helper is not None:
            helper()

    with listening, shared_by_workers() if count > 1 else nullcontext():
        Supervisor(count, work, help_workers if helper else None).run(started)


@dataclass
class _Worker:
    pid: int
    ready: int
    """Reading end of a pipe that the worker closes when it is ready."""


class Supervisor:
    """Keeps processes running: replaces those that die, and ends them all with itself."""

    def __init__(
        self,
        count: int,
        work: Callable[[Ready], None],
        help_workers: Callable[[Ready], None] | None,
    ) -> None:
        """``work`` is run by each of ``count`` workers, ``help_workers`` by one process more."""
        self._count = count
        self._work = work
        self._help_workers = help_workers
        self._workers: list[_Worker] = []
        self._helper: _Worker | None = None
        self._stopping = False
        self._replacing = False

    def run(self, started: Callable[[], None]) -> None:
        """Run until SIGTERM or SIGINT; ``started`` is called once when all workers are ready.

        Raises:
            WorkerFailed: a worker could not start.

        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        signal.signal(signal.SIGHUP, self._replace)
        gc.collect()
        gc.freeze()  # a collection in a worker would copy the pages that it only looks at
        self._workers = [self._fork(self._work) for _ in range(self._count)]
        self._helper = self._fork(self._help_workers) if self._help_workers else None
        try:
            for worker in self._workers:
                self._wait_ready(worker)
            if not self._stopping:
                started()
            while not self._stopping:
                self._reap()
                if self._replacing:
                    self._replacing = False
                    self._replace_all()
                time.sleep(_PAUSE_S)
        finally:
            self._end(self._processes())

    def _processes(self) -> list[_Worker]:
        return [*self._workers, *([self._helper] if self._helper else [])]

    def _stop(self, *_: Any) -> None:
        self._stopping = True

    def _replace(self, *_: Any) -> None:
        self._replacing = True

    def _fork(self, work: Callable[[Ready], None]) -> _Worker:
        reading, writing = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        # Until the child has handlers of its own, it would take a signal with this process's
        # handlers, which are of no use there: the signal would be lost. So it waits.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        pid = os.fork()
        if pid:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            os.close(writing)
            return _Worker(pid, reading)
        code = 1
        try:
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            _end_with(parent)
            os.close(reading)
            work(lambda: os.close(writing))
            code = 0
        except KeyboardInterrupt:
            code = 0
        except BaseException:
            _log.exception("a worker ended")
        finally:
            logging.shutdown()
            os._exit(code)

    def _wait_ready(self, worker: _Worker) -> None:
        """Wait until a worker closes its end of the pipe; it also closes when the worker dies."""
        deadline = time.monotonic() + _START_S
        os.set_blocking(worker.ready, False)
        while time.monotonic() < deadline and not self._stopping:
            try:
                if os.read(worker.ready, 1) == b"":
                    break
            except BlockingIOError:
                time.sleep(_PAUSE_S)
        os.close(worker.ready)
        pid, _ = os.waitpid(worker.pid, os.WNOHANG)
        if pid and not self._stopping:
            raise WorkerFailed("a worker could not start")

    def _reap(self) -> None:
        """Replace processes that have died."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            # Whoever became this program may have left children of its own.
            if self._stopping or pid not in {process.pid for process in self._processes()}:
                continue
            _log.error("process %d of the server ended (status %d) and is replaced", pid, status)
            if self._help_workers and self._helper and pid == self._helper.pid:
                self._helper = self._fork(self._help_workers)
            self._workers = [
                worker if worker.pid != pid else self._fork(self._work) for worker in self._workers
            ]

    def _replace_all(self) -> None:
        for slot, old in enumerate(self._workers):
            new = self._fork(self._work)
            self._wait_ready(new)
            self._workers[slot] = new
            self._end([old])

    def _end(self, workers: list[_Worker]) -> None:
        """Ask processes to finish, and wait for them; one that hangs is killed."""
        for worker in workers:
            _signal(worker.pid, signal.SIGTERM)
        deadline = time.monotonic() + _STOP_S
        waiting = {worker.pid for worker in workers}
        while waiting and time.monotonic() < deadline:
            waiting -= {pid for pid in waiting if _ended(pid)}
            time.sleep(_PAUSE_S)
        for pid in waiting:
            _signal(pid, signal.SIGKILL)
            _ended(pid, wait=True)


def _end_with(parent: int) -> None:
    """Let Linux end this process with its parent: orphans would keep the port."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)


def _signal(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _ended(pid: int, *, wait: bool = False) -> bool:
    try:
        return os.waitpid(pid, 0 if wait else os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True
