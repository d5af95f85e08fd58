"""uvicorn in one worker: it accepts connections fairly, and drains before it stops."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from serving.process.listener import FairListener

_DRAIN_S = 0.5


class DrainingServer(uvicorn.Server):
    """A server that answers with ``Connection: close`` for a while before it stops.

    So no client finds its connection cut: the app's ``DrainingMiddleware`` reads
    ``app.state.draining``.
    """

    def __init__(self, app: FastAPI, ready: Callable[[], None]) -> None:
        """``ready`` is called once requests can come."""
        super().__init__(
            uvicorn.Config(app, log_config=None, access_log=False, server_header=False)
        )
        self._state = app.state
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to accept connections in turn with the other workers."""
        await super().startup([])
        if self.started:
            for listening in sockets or ():
                count = self.server_state.connections.__len__
                self.servers.append(FairListener(listening, self._protocol, count))  # type: ignore[arg-type]
            self._ready()

    def _protocol(self) -> asyncio.Protocol:
        protocol: Any = self.config.http_protocol_class
        made: asyncio.Protocol = protocol(self.config, self.server_state, self.lifespan.state)
        return made

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Accept no more connections, and stop a moment later; a second signal stops at once."""
        if self._state.draining:
            super().handle_exit(sig, frame)
            return
        self._state.draining = True
        for server in self.servers:
            server.close()
        asyncio.get_event_loop().call_later(_DRAIN_S, super().handle_exit, sig, frame)
