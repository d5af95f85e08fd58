"""Load shedding: a request that would only wait is refused before any work is done for it."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import Counter
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.http.executors import Executor
from serving.http.problem_details import overloaded


class LoadSheddingMiddleware:
    """Answers 503 to a POST while the executor of its path is full.

    A refusal costs a tenth of a request that is served, so a flood of them does not keep a server
    from answering those that it has accepted.
    """

    def __init__(self, app: ASGIApp, executors: Mapping[str, Executor], shed: Counter) -> None:
        """``executors``: by path; ``shed`` counts refusals."""
        self._app = app
        self._executors = executors
        self._shed = shed
        self._refusal = overloaded()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        executor = self._executors.get(scope["path"]) if scope["type"] == "http" else None
        if executor is not None and executor.full and scope["method"] == "POST":
            self._shed.inc()
            await self._refusal(scope, receive, send)
        else:
            await self._app(scope, receive, send)
