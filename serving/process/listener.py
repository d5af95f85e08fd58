"""A listening socket, and connections spread evenly over the workers that share it.

The first worker to wake up would accept all connections that wait, and keep them: clients hold
their connections. So a worker pauses before it accepts, the longer the more connections it has.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from feature_repo.errors import FunnelError

_BACKLOG = 2_048
_PAUSE_S = 0.001
_MAX_PAUSE_S = 0.02
_RETRY_S = 0.1

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


class FairListener:
    """Accepts connections of a listening socket, one at a time."""

    def __init__(
        self, listening: socket.socket, protocols: Protocols, connections: Callable[[], int]
    ) -> None:
        """``protocols`` makes a connection's protocol; ``connections`` counts this process's."""
        self._socket = listening
        self._protocols = protocols
        self._connections = connections
        self._loop = asyncio.get_running_loop()
        self._starting: set[asyncio.Task[object]] = set()
        self._closed = False
        listening.setblocking(False)
        self._listen()

    def close(self) -> None:
        """Accept no more connections."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._socket)
            self._socket.close()

    async def wait_closed(self) -> None:
        """Nothing is left to wait for."""

    def _listen(self) -> None:
        if not self._closed:
            self._loop.add_reader(self._socket, self._accept_soon)

    def _accept_soon(self) -> None:
        held = self._connections() + len(self._starting)
        self._loop.remove_reader(self._socket)
        self._loop.call_later(min(held * _PAUSE_S, _MAX_PAUSE_S), self._accept)

    def _accept(self) -> None:
        if self._closed:
            return
        try:
            connection, _ = self._socket.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            self._listen()  # another worker was quicker
        except OSError:  # no more files may be open
            self._loop.call_later(_RETRY_S, self._listen)
        else:
            connection.setblocking(False)
            task = self._loop.create_task(
                self._loop.connect_accepted_socket(self._protocols, connection)
            )
            self._starting.add(task)
            task.add_done_callback(self._started)
            self._listen()

    def _started(self, task: asyncio.Task[object]) -> None:
        self._starting.discard(task)
        if not task.cancelled():
            task.exception()  # a client that went away at once is no error
