"""Routes that are served past FastAPI's routing, which takes as long as a stage of the funnel."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send


class FastRoute(NamedTuple):
    """A route of the app, whose path names it in metrics and traces, and its handler."""

    route: BaseRoute
    handle: Callable[[Request], Awaitable[Response]]


class FastPathMiddleware:
    """Calls the handlers of some POST routes directly; everything else takes the usual way."""

    def __init__(self, app: ASGIApp, routes: Mapping[str, FastRoute]) -> None:
        """``routes``: by path."""
        self._app = app
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        fast = self._routes.get(scope["path"]) if scope["type"] == "http" else None
        if fast is None or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        scope["route"] = fast.route
        response = await fast.handle(Request(scope, receive))
        await response(scope, receive, send)
