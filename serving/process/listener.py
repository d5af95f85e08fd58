"""Connections for several workers that listen on one socket, spread evenly.

Whoever wakes up first would take all that wait, and keep them: clients hold their connections. So a
worker waits a moment before it accepts, the longer the more it has; one that has fewer is quicker.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

_PAUSE_S = 0.001
_LONGEST_S = 0.02
_BROKEN_S = 0.1

Protocols = Callable[[], asyncio.BaseProtocol]


class FairListener:
    """Accepts connections of a listening socket, one at a time."""

    def __init__(
        self, listening: socket.socket, protocols: Protocols, connections: Callable[[], int]
    ) -> None:
        """``protocols`` makes a connection's protocol; ``connections`` tells how many this process has."""
        self._socket, self._protocols, self._connections = listening, protocols, connections
        self._loop = asyncio.get_running_loop()
        self._starting: set[asyncio.Task[object]] = set()
        self._closed = False
        listening.setblocking(False)
        self._listen()

    def close(self) -> None:
        """Accept no more."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._socket)
            self._socket.close()

    async def wait_closed(self) -> None:
        """Nothing is left to wait for."""

    def _listen(self) -> None:
        if not self._closed:
            self._loop.add_reader(self._socket, self._come)

    def _come(self) -> None:
        held = self._connections() + len(self._starting)
        self._loop.remove_reader(self._socket)
        self._loop.call_later(min(held * _PAUSE_S, _LONGEST_S), self._accept)

    def _accept(self) -> None:
        if self._closed:
            return
        try:
            connection, _ = self._socket.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            self._listen()  # another worker was quicker
        except OSError:  # no more files may be open
            self._loop.call_later(_BROKEN_S, self._listen)
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
