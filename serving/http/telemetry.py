"""Telemetry of every request: an id, metrics, a log line and, where wanted, a trace."""

from __future__ import annotations

import logging
import os
import re
import uuid
from collections.abc import Mapping
from time import perf_counter
from typing import TYPE_CHECKING, Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from feature_repo.errors import FunnelError
from feature_repo.settings import read_settings
from serving.observability.logs import begin_notes, request_id, trace_id
from serving.observability.metrics import Metrics

if TYPE_CHECKING:
    from serving.observability.tracing import Tracing

PROBES = frozenset({"/healthz", "/readyz", "/metrics"})
"""Asked every few seconds by machines: logged at DEBUG, never traced."""

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_HEADER = b"x-request-id"
_VISIBLE = re.compile(rb"[\x21-\x7e]{1,128}")
_CLIENT_CLOSED = 499  # nginx's number for a client that closed the connection first

_access = logging.getLogger("serving.http.access")


class TracingMissing(FunnelError):  # noqa: N818 - a state, said to the user
    """Tracing is wanted, and its packages are not installed."""


def start_tracing() -> Tracing | None:
    """Return tracing if ``FUNNEL_OTEL`` is on, or unset and an endpoint of OpenTelemetry is set.

    Close it at the end.

    Raises:
        TracingMissing: it is asked for, and its packages are not installed.

    """
    wanted = read_settings().otel
    if wanted is None:
        wanted = any(os.environ.get(name) for name in _ENDPOINTS)
    if not wanted:
        return None
    try:
        from serving.observability.tracing import Tracing
    except ImportError as error:
        raise TracingMissing(
            f"tracing needs: pip install '.[otel]' -c constraints.txt ({error})"
        ) from None
    return Tracing()


class _Exchange:
    """One request and what became of it."""

    __slots__ = ("_send", "id", "status")

    def __init__(self, id_: bytes, send: Send) -> None:
        self.id = id_
        self.status = 0
        self._send = send

    async def send(self, message: Message) -> None:
        """Pass a message of the answer on, with the request's id in its headers."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", ()), (_HEADER, self.id)]
        await self._send(message)


class TelemetryMiddleware:
    """Gives every request an id, and notes how it ended.

    A request's id is the caller's ``X-Request-Id`` if that is up to 128 visible ASCII characters,
    else a new one. It is in the answer's headers, in ``request.state.request_id`` and in every log
    line that the request causes.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, tracing: Tracing | None = None) -> None:
        self._app = app
        self._metrics = metrics
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; other kinds of traffic pass."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(_id(scope), send)
        scope.setdefault("state", {})["request_id"] = name = exchange.id.decode()
        request_id.set(name)  # not reset: the server runs each request in a context of its own
        if self._tracing is None or scope["path"] in PROBES:
            await self._answer(scope, receive, exchange)
        else:
            await self._traced(self._tracing, scope, receive, exchange)

    async def _traced(
        self, tracing: Tracing, scope: Scope, receive: Receive, exchange: _Exchange
    ) -> None:
        from serving.observability.tracing import answered, hexadecimal

        with tracing.request(scope, exchange.id.decode()) as span:
            trace_id.set(hexadecimal(span))
            try:
                await self._answer(scope, receive, exchange)
            finally:
                answered(span, scope["method"], _endpoint(scope), exchange.status)

    async def _answer(self, scope: Scope, receive: Receive, exchange: _Exchange) -> None:
        level = logging.DEBUG if scope["path"] in PROBES else logging.INFO
        notes = begin_notes() if _access.isEnabledFor(level) else None
        metrics = self._metrics
        start = perf_counter()
        metrics.in_flight.inc()
        try:
            await self._app(scope, receive, exchange.send)
        except Exception:
            exchange.status = 500  # nothing was sent, or half an answer
            raise
        finally:
            seconds = perf_counter() - start
            endpoint = _endpoint(scope)
            exchange.status = exchange.status or _CLIENT_CLOSED
            metrics.in_flight.dec()
            metrics.answered(endpoint, exchange.status, seconds)
            if notes is not None:
                facts = {
                    "method": scope["method"],
                    "endpoint": endpoint,
                    "status": exchange.status,
                    "ms": round(seconds * 1_000, 3),
                }
                _log_access(level, facts | notes)


def _id(scope: Scope) -> bytes:
    for name, value in scope["headers"]:
        if name == _HEADER and _VISIBLE.fullmatch(value):
            return bytes(value)
    return uuid.uuid4().hex.encode()


def _endpoint(scope: Scope) -> str:
    """Return the route's template: there are few of them, while users' paths have no end."""
    path: str = getattr(scope.get("route"), "path", "unknown")
    return path


def _log_access(level: int, facts: Mapping[str, Any]) -> None:
    """Write the access line.

    It holds no path, body, header or user id: logs outlive a user's wish to be forgotten.
    """
    _access.log(level, "request", extra={"facts": facts})
