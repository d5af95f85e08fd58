"""Draining: a server that is about to stop lets its clients go."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class DrainingMiddleware:
    """Adds ``Connection: close`` to every answer while ``app.state.draining`` is true.

    So no client sends its next request on a connection that is about to be cut.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""

        async def closing_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            await send(message)

        draining = scope["type"] == "http" and scope["app"].state.draining
        await self._app(scope, receive, closing_send if draining else send)
