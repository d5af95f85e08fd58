"""A parent process and the workers that it forks on one listening socket.

What the parent has loaded is in the workers' memory without being copied. A worker that dies is
replaced; on SIGHUP all are replaced, one after the other; on SIGTERM each finishes what it has
begun.
"""

from __future__ import annotations

import ctypes
import gc
import itertools
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
from feature_repo.settings import read_settings
from serving.observability.multiprocess import shared_by_workers
from serving.process.draining_server import DrainingServer
from serving.process.listener import ConnectionCounts

_log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1
_SWITCH_S = 0.0005
"""How long a thread keeps the GIL from one that comes back from FAISS.

Python's default is 5 ms, which is two requests.
"""
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_START_S = 120.0
_STOP_S = 30.0
_PAUSE_S = 0.05

_SHORT_S = 10.0
"""A process that ends sooner has failed to start: it is tried again later and later."""

_LONGEST_PAUSE_S = 30.0

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
    counts = ConnectionCounts(count + 2)  # beside a helper; a worker is replaced beside the old one
    max_connections = read_settings().max_connections

    def work(ready: Ready, slot: int) -> None:
        sys.setswitchinterval(_SWITCH_S)
        server = DrainingServer(create_app(), ready, counts.of(slot), max_connections)
        server.run(sockets=[listening])

    def help_workers(_: Ready, __: int) -> None:
        listening.close()
        if helper is not None:
            helper()

    with listening, shared_by_workers() if count > 1 else nullcontext():
        Supervisor(count, work, help_workers if helper else None, counts.remove).run(started)


Work = Callable[[Ready, int], None]
"""What a process runs: it calls the first argument when it is ready; the second is its slot."""


@dataclass
class _Process:
    """One child.

    Attributes:
        work: what it runs.
        slot: a number that no other living child has.
        pid: its process id; 0: it has ended, and is to be started again at ``due``.
        ready: reading end of a pipe that it closes when it is ready.
        born: when it was started, by ``time.monotonic``.
        failures: how many times in a row it ended soon after its start.
        due: when it may be started again, by ``time.monotonic``.

    """

    work: Work
    slot: int
    pid: int = 0
    ready: int = -1
    born: float = 0.0
    failures: int = 0
    due: float = 0.0


class Supervisor:
    """Keeps processes running: replaces those that die, and ends them all with itself."""

    def __init__(
        self,
        workers: int,
        work: Work,
        help_workers: Work | None,
        ended: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Start nothing yet.

        Args:
            workers: number of workers.
            work: run by each of them.
            help_workers: run by one process more.
            ended: called with the slot of a process that has ended.

        """
        self._workers = [_Process(work, slot) for slot in range(workers)]
        self._helpers = [_Process(help_workers, workers)] if help_workers else []
        self._ended_hook = ended
        self._gone: set[int] = set()
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
        try:
            for process in self._processes():
                self._fork(process)
            for worker in self._workers:
                if not self._wait_ready(worker) and not self._stopping:
                    raise WorkerFailed("a worker could not start")
            if not self._stopping:
                started()
            while not self._stopping:
                self._keep_running()
                if self._replacing:
                    self._replacing = False
                    self._replace_all()
                time.sleep(_PAUSE_S)
        finally:
            self._end([process for process in self._processes() if process.pid])

    def _processes(self) -> list[_Process]:
        return [*self._workers, *self._helpers]

    def _stop(self, *_: Any) -> None:
        self._stopping = True

    def _replace(self, *_: Any) -> None:
        self._replacing = True

    def _fork(self, process: _Process) -> None:
        """Start a process; this one goes on."""
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
            process.pid = pid
            process.ready = reading
            process.born = time.monotonic()
            return
        code = 1
        try:
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            _end_with(parent)
            os.close(reading)
            process.work(lambda: os.close(writing), process.slot)
            code = 0
        except KeyboardInterrupt:
            code = 0
        except FunnelError as error:
            _log.error("a process of the server ended: %s", error)  # noqa: TRY400 - one line
        except BaseException:
            _log.exception("a process of the server ended")
        finally:
            logging.shutdown()
            os._exit(code)

    def _wait_ready(self, process: _Process) -> bool:
        """Wait until a process is ready, and return whether it is.

        It closes its end of the pipe when it is; the end also closes when it dies.
        """
        deadline = time.monotonic() + _START_S
        os.set_blocking(process.ready, False)
        closed = False
        while not closed and time.monotonic() < deadline and not self._stopping:
            try:
                closed = os.read(process.ready, 1) == b""
            except BlockingIOError:
                time.sleep(_PAUSE_S)
        self._reap()
        return closed and bool(process.pid) and process.pid not in self._gone

    def _keep_running(self) -> None:
        """Start again what has ended, at once the first time and then later and later."""
        self._reap()
        for process in self._processes():
            if process.pid in self._gone:
                self._gone.discard(process.pid)
                self._has_ended(process)
        for process in self._processes():
            if not process.pid and time.monotonic() >= process.due and not self._stopping:
                self._fork(process)

    def _has_ended(self, process: _Process) -> None:
        """Note that a process has ended, and when it may start again."""
        lived_s = time.monotonic() - process.born
        process.failures = process.failures + 1 if lived_s < _SHORT_S else 0
        pause_s = min(_LONGEST_PAUSE_S, 2.0 ** (process.failures - 2))
        if process.failures <= 1:
            pause_s = 0.0
        _log.error(
            "process %d of the server ended after %.0f s and is replaced%s",
            process.pid,
            lived_s,
            f" in {pause_s:g} s" if pause_s else "",
        )
        self._forget(process)
        process.due = time.monotonic() + pause_s

    def _forget(self, process: _Process) -> None:
        """Give back what a process that has ended was given."""
        self._ended_hook(process.slot)
        process.pid = 0
        if process.ready >= 0:
            os.close(process.ready)
            process.ready = -1

    def _reap(self) -> None:
        """Collect the ids of the children that have ended."""
        with suppress(ChildProcessError):
            while pid := os.waitpid(-1, os.WNOHANG)[0]:
                # Whoever became this program may have left children of its own.
                self._gone.add(pid)

    def _replace_all(self) -> None:
        """Replace each worker by a new one; if that cannot start, the old ones go on."""
        for place, old in enumerate(self._workers):
            used = {process.slot for process in self._processes()}
            new = _Process(old.work, next(slot for slot in itertools.count() if slot not in used))
            self._fork(new)
            if not self._wait_ready(new):
                self._end([new])
                if not self._stopping:
                    _log.error(
                        "a new worker could not start; the old ones go on: mend what the lines "
                        "above say, and send SIGHUP again"
                    )
                return
            self._workers[place] = new
            if old.pid:
                self._end([old])

    def _end(self, processes: list[_Process]) -> None:
        """Ask processes to finish, and wait for them; one that hangs is killed."""
        for process in processes:
            _signal(process.pid, signal.SIGTERM)
        deadline = time.monotonic() + _STOP_S
        waiting = {process.pid for process in processes} - self._gone
        while waiting and time.monotonic() < deadline:
            waiting -= {pid for pid in waiting if _ended(pid)}
            time.sleep(_PAUSE_S)
        for pid in waiting:
            _signal(pid, signal.SIGKILL)
            _ended(pid, wait=True)
        for process in processes:
            self._gone.discard(process.pid)
            self._forget(process)


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
