"""``funnel serve``: a parent that loads the release once, and workers forked from it that answer requests.

What the parent has loaded is in the workers' memory without being copied. A worker that dies is
replaced; on SIGHUP all are replaced, one after the other; on SIGTERM each finishes what it has
begun.
"""

from __future__ import annotations

import asyncio
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
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from feature_repo.errors import FunnelError
from feature_repo.workspace import Workspace
from serving.counters import CounterFiles, CounterReader
from serving.http.access import load_keys
from serving.http.app import create_app
from serving.observability.logs import setup_logging
from serving.observability.multiprocess import shared_by_workers
from serving.process.listener import FairListener
from serving.releases.poller import ReleasePoller
from serving.releases.verify import check_release, registered_features

_log = logging.getLogger(__name__)

_BACKLOG = 2_048
_PR_SET_PDEATHSIG = 1
_DRAIN_S = 0.5
_SWITCH_S = 0.0005
"""How long a thread keeps another waiting that comes back from FAISS; by default it is 5 ms, which is two requests."""
_START_S = 60.0
_STOP_S = 30.0
_PAUSE_S = 0.05


def serve(
    workspace: Workspace,
    folder: Path,
    address: tuple[str, int],
    workers: int = 1,
    started: Callable[[], None] = lambda: None,
) -> None:
    """Serve a release until SIGTERM or SIGINT.

    Args:
        workspace: the working folder.
        folder: the release to begin with.
        address: host and port to listen on.
        workers: processes that answer requests.
        started: called once when all of them can be asked.

    Raises:
        BadRelease: the release cannot be served.
        NoKeys: others than this machine can reach the host, and there are no API keys.
        PortTaken: somebody else listens there.
        WorkerFailed: a worker could not start.

    """
    setup_logging()
    keys = load_keys(address[0], workspace.root / "keys.json")
    release = check_release(folder, registered_features(workspace))
    release.recommender.prepare(release.items)
    files = CounterFiles(workspace.root / "serving" / "counters")
    listening = _listen(address)

    def work(ready: Callable[[], None]) -> None:
        sys.setswitchinterval(_SWITCH_S)
        app = create_app(workspace, release, keys, counters=files, follow=True)
        config = uvicorn.Config(app, log_config=None, access_log=False, server_header=False)
        server = DrainingServer(config)
        server.started_up = ready
        server.run(sockets=[listening])

    def beside() -> None:
        listening.close()
        reader, serving = CounterReader(workspace, files), [release]
        poller = ReleasePoller(
            workspace, release, lambda promoted: serving.__setitem__(0, promoted)
        )
        while True:
            poller.poll()
            reader.step(serving[0])
            time.sleep(1.0)

    with listening, shared_by_workers() if workers > 1 else nullcontext():
        Supervisor(workers, work, beside).run(started)


def _listen(address: tuple[str, int]) -> socket.socket:
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(address)
    except OSError as error:
        raise PortTaken(
            f"cannot listen on {address[0]}:{address[1]}: {error.strerror}; choose another --port"
        ) from None
    listening.listen(_BACKLOG)
    return listening


class PortTaken(FunnelError):  # noqa: N818 - a state, said to the user
    """The address cannot be listened on."""


class WorkerFailed(FunnelError):  # noqa: N818 - a state, said to the user
    """A worker ended while it was starting; its own words are above."""


class DrainingServer(uvicorn.Server):
    """Before it ends it answers for a moment with ``Connection: close``: no client finds its connection cut."""

    started_up: Callable[[], None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen in turn with the other workers, and say so when requests can come."""
        await super().startup([])
        if self.started:
            for listening in sockets or ():
                count = self.server_state.connections.__len__
                self.servers.append(FairListener(listening, self._protocol, count))  # type: ignore[arg-type]
            if self.started_up:
                self.started_up()

    def _protocol(self) -> asyncio.Protocol:
        protocol: Any = self.config.http_protocol_class
        made: asyncio.Protocol = protocol(self.config, self.server_state, self.lifespan.state)
        return made

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop accepting connections now, and stop a moment later."""
        if self.config.app.state.draining:  # type: ignore[union-attr]
            super().handle_exit(sig, frame)
            return
        self.config.app.state.draining = True  # type: ignore[union-attr]
        for server in self.servers:
            server.close()
        asyncio.get_event_loop().call_later(_DRAIN_S, super().handle_exit, sig, frame)


@dataclass
class _Worker:
    pid: int
    ready: int
    """Reading end of a pipe that the worker closes when it can be asked."""


class Supervisor:
    """Keeps workers running on one listening socket."""

    def __init__(
        self, count: int, work: Callable[[Callable[[], None]], None], beside: Callable[[], None]
    ) -> None:
        """``work`` is run by each worker and calls its argument when it is ready, ``beside`` by one process more."""
        self._count, self._work, self._beside = count, work, beside
        self._workers: list[_Worker] = []
        self._helper: _Worker | None = None
        self._stopping = self._replacing = False

    def run(self, started: Callable[[], None]) -> None:
        """Work until SIGTERM or SIGINT; ``started`` is called when all workers are ready for the first time.

        Raises:
            WorkerFailed: a worker could not start.

        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        signal.signal(signal.SIGHUP, self._replace)
        gc.collect()
        gc.freeze()  # a collection in a worker would copy the pages that it only looks at
        self._workers = [self._fork(self._work) for _ in range(self._count)]
        self._helper = self._fork(lambda _: self._beside())
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
            self._end([*self._workers, *([self._helper] if self._helper else [])])

    def _stop(self, *_: Any) -> None:
        self._stopping = True

    def _replace(self, *_: Any) -> None:
        self._replacing = True

    def _fork(self, work: Callable[[Callable[[], None]], None]) -> _Worker:
        reading, writing = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        parent, pid = os.getpid(), os.fork()
        if pid:
            os.close(writing)
            return _Worker(pid, reading)
        code = 1
        try:
            _end_with(parent)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
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
        """Replace who has died."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            known = {one.pid for one in self._workers} | {self._helper.pid if self._helper else 0}
            if (
                self._stopping or pid not in known
            ):  # whoever became this program may have left children of its own
                continue
            _log.error(
                "process %d of the server ended (status %d); another takes its place", pid, status
            )
            if self._helper and pid == self._helper.pid:
                self._helper = self._fork(lambda _: self._beside())
            self._workers = [
                one if one.pid != pid else self._fork(self._work) for one in self._workers
            ]

    def _replace_all(self) -> None:
        for place, old in enumerate(self._workers):
            new = self._fork(self._work)
            self._wait_ready(new)
            self._workers[place] = new
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
    """Be told to end when the parent dies, also when it is killed: orphans would keep the port. Linux only."""
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
