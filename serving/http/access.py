"""Who gets in: the key, scope, rate and size of every request. Plain ASGI, because it is on the way of each one."""

from __future__ import annotations

import ipaddress
import logging
import math
import os
import time
from collections.abc import Collection, Mapping
from pathlib import Path

from starlette.types import ASGIApp, Message, Receive, Send
from starlette.types import Scope as Connection

from feature_repo.errors import FunnelError
from serving.api.problems import MEDIA_TYPE, problem
from serving.http.headers import DOCS_POLICY, POLICY, PREFLIGHT, Headers, ResponseHeaders
from serving.http.keys import Key, KeyRing, Scope

MAX_BODY = 2 * 1024 * 1024
"""Bytes of a request's body that are taken, unless told otherwise."""

_OPEN = {"/healthz", "/readyz"}
_DOCS = "/docs"
_ANY_KEY = {_DOCS, "/openapi.json"}
_LONGEST_NUMBER = 15
_PREFLIGHT_FOR = b"access-control-request-method"
_READ = {b"authorization", b"x-api-key", b"content-length", b"origin", _PREFLIGHT_FOR}
_log = logging.getLogger(__name__)


class NoKeys(FunnelError):
    """The server would be open to a network, and nobody has said that it may be."""


def guard(host: str, keys_file: Path) -> KeyRing | None:
    """Return the keys to ask for when listening on ``host``; None: everybody is let in.

    Raises:
        NoKeys: there are none, others than this machine can reach the host, and ``FUNNEL_OPEN`` is
            not ``yes``.
        BadKeys: the file is damaged.

    """
    if keys_file.exists():
        return KeyRing(keys_file)
    if not _loopback(host) and os.environ.get("FUNNEL_OPEN") != "yes":
        raise NoKeys(
            f"there are no API keys, and others can reach {host or 'all addresses'}: make one with 'funnel keys create "
            "--name web --scope recommend --scope events', or set FUNNEL_OPEN=yes if a gateway of yours lets nobody by"
        )
    _log.warning("no API keys: whoever reaches %s may do everything", host or "any address")
    return None


def _loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def needed(method: str, path: str) -> Scope | None:
    """Return the scope that a route asks for; None: any key will do. A route that is not named here asks for admin."""
    if method == "DELETE":
        return Scope.ADMIN
    if path == "/v1/events":
        return Scope.EVENTS
    if path.startswith("/v1/recommendations"):
        return Scope.RECOMMEND
    if path.startswith(("/v1/users/", "/v1/items/")) and method in ("GET", "HEAD"):
        return Scope.RECOMMEND
    return None if path in _ANY_KEY else Scope.ADMIN


class Rates:
    """Token buckets, a second's worth for each key. Every process has its own: n workers let n times the rate by."""

    def __init__(self) -> None:
        self._buckets: dict[str, tuple[float, float]] = {}

    def wait(self, key: Key, now: float) -> float:
        """Take a token, at a time in seconds; return 0, or the seconds until there is one to take."""
        rate = key.rate_limit
        if rate is None:
            return 0.0
        most = max(1.0, rate)
        tokens, last = self._buckets.get(key.id, (most, now))
        tokens = min(most, tokens + (now - last) * rate)
        self._buckets[key.id] = (tokens - 1 if tokens >= 1 else tokens, now)
        return 0.0 if tokens >= 1 else (1 - tokens) / rate


class _Refused(Exception):
    """The request goes no further; it carries the answer."""

    def __init__(self, status: int, title: str, detail: str, *headers: tuple[bytes, bytes]) -> None:
        super().__init__(title)
        self.status, self.body = status, problem(status, title, detail)
        self.headers = [(b"content-type", MEDIA_TYPE.encode()), *headers]


class Access:
    """Middleware that passes a request on or answers it; without keys it looks at sizes only."""

    def __init__(
        self,
        app: ASGIApp,
        keys: KeyRing | None,
        origins: Collection[str] = (),
        max_body: int = MAX_BODY,
    ) -> None:
        """``origins``: those of web pages that may call from a browser; ``max_body``: bytes of a request's body."""
        self._app, self._keys, self._max_body = app, keys, max_body
        self._rates = Rates()
        self._headers, self._docs_headers = (
            ResponseHeaders(POLICY, origins),
            ResponseHeaders(DOCS_POLICY, origins),
        )

    async def __call__(self, scope: Connection, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        else:
            await send(
                {"type": "websocket.close", "code": 1008}
            )  # the API has none: one added later is not left open

    async def _http(self, scope: Connection, receive: Receive, send: Send) -> None:
        method, path = scope["method"], scope["path"].removeprefix(scope.get("root_path", ""))
        read = {name: value for name, value in scope["headers"] if name in _READ}
        headers, origin = (
            self._docs_headers if path == _DOCS else self._headers,
            read.get(b"origin"),
        )
        exchange = _Exchange(receive, send, headers.to(origin), self._max_body)
        if method == "OPTIONS" and _PREFLIGHT_FOR in read and headers.allow(origin):
            await exchange.answer(204, PREFLIGHT)  # a browser sends no key with it
            return
        try:
            self._admit(method, path, read)
            await self._app(scope, exchange.receive, exchange.send)
        except Exception as error:
            # What was raised in receive may come back in the wrapping of a framework, for example
            # as a group.
            refused = error if isinstance(error, _Refused) else exchange.refused
            await exchange.refuse(refused or _failed(scope))
            if refused is None:
                raise

    def _admit(self, method: str, path: str, read: Mapping[bytes, bytes]) -> None:
        if self._keys is not None and (path not in _OPEN or method == "DELETE"):
            self._check_key(self._keys, method, path, read)
        length = read.get(b"content-length", b"")
        if length.isdigit() and (len(length) > _LONGEST_NUMBER or int(length) > self._max_body):
            raise _too_large(self._max_body)

    def _check_key(
        self, keys: KeyRing, method: str, path: str, read: Mapping[bytes, bytes]
    ) -> None:
        key = keys.find(_presented(read))
        if key is None:
            detail = "send one as 'Authorization: Bearer ...' or 'X-API-Key: ...'"
            raise _Refused(
                401, "a valid API key is needed", detail, (b"www-authenticate", b"Bearer")
            )
        if wait := self._rates.wait(key, time.monotonic()):
            detail = f"this key may send {key.rate_limit:g} a second"
            raise _Refused(
                429, "too many requests", detail, (b"retry-after", str(math.ceil(wait)).encode())
            )
        scope = needed(method, path)
        if scope is not None and scope not in key.scopes and Scope.ADMIN not in key.scopes:
            raise _Refused(403, "this API key may not do that", f"the scope '{scope}' is needed")


def _presented(read: Mapping[bytes, bytes]) -> str:
    kind, _, credentials = read.get(b"authorization", b"").partition(b" ")
    # Credentials of another kind are for somebody else on the way, such as a gateway.
    text = credentials if kind.lower() == b"bearer" else read.get(b"x-api-key", b"")
    return text.strip().decode("latin-1")


def _failed(scope: Connection) -> _Refused:
    name = scope.get("state", {}).get("request_id")
    return _Refused(
        500,
        "the server failed",
        "its log says why" + (f", under the request id {name}" if name else ""),
    )


def _too_large(limit: int) -> _Refused:
    return _Refused(413, "the request is too large", f"its body may have {limit} bytes")


class _Exchange:
    """One request and its response: counts the bytes of the one, adds headers to the other."""

    __slots__ = ("_headers", "_left", "_limit", "_receive", "_send", "_started", "refused")

    def __init__(self, receive: Receive, send: Send, headers: Headers, limit: int) -> None:
        self._receive, self._send, self._headers = receive, send, headers
        self._limit = self._left = limit
        self._started = False
        self.refused: _Refused | None = None

    async def receive(self) -> Message:
        """Pass a part of the request on, unless it is one too many: not every sender says how much will come."""
        message = await self._receive()
        if message["type"] == "http.request":
            self._left -= len(message.get("body", b""))
            if self._left < 0:
                self.refused = _too_large(self._limit)
                raise self.refused
        return message

    async def send(self, message: Message) -> None:
        """Pass a part of the response on."""
        if self.refused is not None:
            await self.refuse(
                self.refused
            )  # frameworks make an answer of their own of the exception in receive
            return
        if message["type"] == "http.response.start":
            self._started = True
            message["headers"] = [*message.get("headers", ()), *self._headers]
        await self._send(message)

    async def refuse(self, refused: _Refused) -> None:
        """Answer with an error, unless the response has begun."""
        if not self._started:
            length = (b"content-length", str(len(refused.body)).encode())
            await self.answer(refused.status, [*refused.headers, length], refused.body)

    async def answer(self, status: int, headers: Headers, body: bytes = b"") -> None:
        """Send a whole response."""
        self._started = True
        await self._send(
            {"type": "http.response.start", "status": status, "headers": [*headers, *self._headers]}
        )
        await self._send({"type": "http.response.body", "body": body})
