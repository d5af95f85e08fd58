"""uvicorn in one worker: it accepts connections fairly, and drains before it stops."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

from serving.process.bounded_protocol import BoundedProtocol
from serving.process.listener import FairListener, WorkerConnections

_DRAIN_S = 0.5
_GRACE_S = 15
"""Seconds that requests under way have to end, less than the parent waits."""


class DrainingServer(uvicorn.Server):
    """A server that answers with ``Connection: close`` for a while before it stops.

    So no client finds its connection cut: the app's ``DrainingMiddleware`` reads
    ``app.state.draining``.
    """

    def __init__(
        self,
        app: FastAPI,
        ready: Callable[[], None],
        worker: WorkerConnections,
        max_connections: int,
    ) -> None:
        """Prepare a server.

        Args:
            app: what answers.
            ready: called once requests can come.
            worker: where the open connections are noted.
            max_connections: more than these wait until others are closed.

        """
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                server_header=False,
                ws="none",
                timeout_graceful_shutdown=_GRACE_S,
            )
        )
        self._state = app.state
        self._ready = ready
        self._worker = worker
        self._max_connections = max_connections

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to accept connections in turn with the other workers."""
        await super().startup([])
        if self.started:
            for listening in sockets or ():
                listener = FairListener(
                    listening,
                    self._protocol,
                    open_connections=self.server_state.connections.__len__,
                    worker=self._worker,
                    max_connections=self._max_connections,
                )
                self.servers.append(listener)  # type: ignore[arg-type]
            self._ready()

    def _protocol(self) -> asyncio.Protocol:
        return BoundedProtocol(
            self.config, self.server_state, self.lifespan.state, on_lost=self._connection_lost
        )

    def _connection_lost(self) -> None:
        for server in self.servers:
            if isinstance(server, FairListener):
                server.note()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Accept no more connections, and stop a moment later; a second signal stops at once."""
        if self._state.draining:
            super().handle_exit(sig, frame)
            return
        self._state.draining = True
        for server in self.servers:
            server.close()
        asyncio.get_event_loop().call_later(_DRAIN_S, super().handle_exit, sig, frame)
