"""The size limit of request bodies."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.http.problem_details import RequestRefused

MAX_BODY = 2 * 1024 * 1024
"""Default limit of a request's body in bytes."""

_MAX_DIGITS = 15


class BodyLimitMiddleware:
    """Refuses bodies over a limit: by their declared length, else by counting what arrives."""

    def __init__(self, app: ASGIApp, limit: int = MAX_BODY) -> None:
        """``limit``: bytes of a request's body."""
        self._app = app
        self._limit = limit
        self._refusal = f"its body may have {limit} bytes"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = next((v for name, v in scope["headers"] if name == b"content-length"), b"")
        if declared.isdigit() and (len(declared) > _MAX_DIGITS or int(declared) > self._limit):
            raise self._too_large()
        body = _CountedBody(receive, send, self._limit)
        try:
            await self._app(scope, body.receive, body.send)
        except Exception:
            if not body.too_large:
                raise
        if body.too_large and not body.answered:
            raise self._too_large()

    def _too_large(self) -> RequestRefused:
        return RequestRefused(413, "the request is too large", self._refusal)


class _CountedBody:
    """Counts the bytes of one request; after too many the app's own answer is not sent."""

    __slots__ = ("_left", "_receive", "_send", "answered", "too_large")

    def __init__(self, receive: Receive, send: Send, limit: int) -> None:
        self._receive = receive
        self._send = send
        self._left = limit
        self.too_large = False
        self.answered = False

    async def receive(self) -> Message:
        """Return the next message of the request; raise once the body is too large."""
        message = await self._receive()
        if message["type"] == "http.request":
            self._left -= len(message.get("body", b""))
            if self._left < 0:
                self.too_large = True
                raise BodyTooLarge
        return message

    async def send(self, message: Message) -> None:
        """Send a message of the answer, unless the body was too large."""
        if not self.too_large:
            self.answered = True
            await self._send(message)


class BodyTooLarge(Exception):  # noqa: N818 - stops the app that reads the body
    """Raised where the app reads the body; frameworks may turn it into an answer of their own."""
