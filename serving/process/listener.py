"""A listening socket, and connections spread evenly over the workers that share it.

The first worker to wake up would accept all connections that wait, and keep them: clients hold
their connections. So the workers know each other's numbers, and one that has more than another
pauses a moment before it accepts.
"""

from __future__ import annotations

import asyncio
import mmap
import socket
from collections.abc import Callable

from feature_repo.errors import FunnelError

_BACKLOG = 2_048
_AT_ONCE = 64
_YIELD_S = 0.005
_RETRY_S = 0.1
_NOBODY = -1

Protocols = Callable[[], asyncio.BaseProtocol]


class PortTaken(FunnelError):  # noqa: N818 - a state, said to the user
    """The address cannot be listened on."""


def listen(address: tuple[str, int]) -> socket.socket:
    """Return a socket that listens on a host and port.

    Raises:
        PortTaken: another process listens there, or the host is not of this machine.

    """
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


class ConnectionCounts:
    """The open connections of each worker, in memory that the forked workers share."""

    def __init__(self, slots: int) -> None:
        """``slots``: workers that may live at the same time; each has one of its own."""
        self._counts = memoryview(mmap.mmap(-1, 4 * slots)).cast("i")
        for slot in range(slots):
            self.remove(slot)

    def of(self, slot: int) -> WorkerConnections:
        """Return the view of the worker that has a slot."""
        return WorkerConnections(self._counts, slot)

    def remove(self, slot: int) -> None:
        """Note that no worker accepts connections in a slot."""
        self._counts[slot] = _NOBODY


class WorkerConnections:
    """One worker's view of the open connections of all."""

    def __init__(self, counts: memoryview, slot: int) -> None:
        self._counts = counts
        self._slot = slot

    def note(self, connections: int) -> None:
        """Note how many connections this worker has."""
        self._counts[self._slot] = connections

    def leave(self) -> None:
        """Note that this worker accepts no more."""
        self._counts[self._slot] = _NOBODY

    @property
    def ahead(self) -> bool:
        """Whether another worker has clearly fewer connections."""
        own = self._counts[self._slot]
        others = [n for n in self._counts if n != _NOBODY]
        least = min(others, default=own)
        return own > least + least // 8


class FairListener:
    """Accepts connections of a listening socket, as many as there are and may be open."""

    def __init__(
        self,
        listening: socket.socket,
        protocols: Protocols,
        *,
        open_connections: Callable[[], int],
        worker: WorkerConnections,
        max_connections: int,
    ) -> None:
        """Begin to listen.

        Args:
            listening: the socket.
            protocols: makes a connection's protocol.
            open_connections: counts this worker's.
            worker: where they are noted for the other workers.
            max_connections: more than these are not accepted, and wait.

        """
        self._socket = listening
        self._protocols = protocols
        self._open_connections = open_connections
        self._worker = worker
        self._limit = max_connections
        self._loop = asyncio.get_running_loop()
        self._starting: set[asyncio.Task[object]] = set()
        self._has_yielded = False
        self._closed = False
        listening.setblocking(False)
        self.note()
        self._listen()

    def close(self) -> None:
        """Accept no more connections."""
        if not self._closed:
            self._closed = True
            self._worker.leave()
            self._loop.remove_reader(self._socket)
            self._socket.close()

    async def wait_closed(self) -> None:
        """Nothing is left to wait for."""

    def note(self) -> None:
        """Tell the other workers how many connections this one has."""
        if not self._closed:
            self._worker.note(self._held())

    def _held(self) -> int:
        return self._open_connections() + len(self._starting)

    def _listen(self) -> None:
        if not self._closed:
            self._loop.add_reader(self._socket, self._accept)

    def _pause(self, seconds: float) -> None:
        self._loop.remove_reader(self._socket)
        self._loop.call_later(seconds, self._listen)

    def _accept(self) -> None:
        """Accept what waits, unless it is another worker's turn: that gets a moment to be first."""
        for _ in range(_AT_ONCE):
            if self._held() >= self._limit:
                self._pause(_RETRY_S)
                return
            if self._worker.ahead and not self._has_yielded:
                self._has_yielded = True
                self._pause(_YIELD_S)
                return
            self._has_yielded = False
            try:
                connection, _ = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return  # another worker was quicker
            except OSError:  # no more files may be open
                self._pause(_RETRY_S)
                return
            self._start(connection)

    def _start(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        task = self._loop.create_task(
            self._loop.connect_accepted_socket(self._protocols, connection)
        )
        self._starting.add(task)
        self.note()
        task.add_done_callback(self._started)

    def _started(self, task: asyncio.Task[object]) -> None:
        self._starting.discard(task)
        if not task.cancelled():
            task.exception()  # a client that went away at once is no error
        self.note()
