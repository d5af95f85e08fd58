"""Who may call what: the API key, rate limit and scope of every request."""

from __future__ import annotations

import ipaddress
import logging
import math
import time
from collections.abc import Iterable
from pathlib import Path

from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as Connection

from feature_repo.errors import FunnelError
from feature_repo.settings import read_settings
from serving.http.headers import DOCS
from serving.http.keys import Key, KeyRing, Scope
from serving.http.problem_details import RequestRefused

OPENAPI = "/openapi.json"

_PROBES = {"/healthz", "/readyz"}
_ANY_KEY = {DOCS, OPENAPI}
_log = logging.getLogger(__name__)


class NoKeys(FunnelError):
    """The server would be open to a network, and nobody has said that it may be."""


def load_keys(host: str, keys_file: Path) -> KeyRing | None:
    """Return the keys that a server on ``host`` asks for; None: everybody may do everything.

    Raises:
        NoKeys: there are none, others than this machine can reach the host, and ``FUNNEL_OPEN`` is
            not ``yes``.
        BadKeys: the file is damaged.

    """
    if keys_file.exists():
        return KeyRing(keys_file)
    if not _is_loopback(host) and read_settings().open != "yes":
        raise NoKeys(
            f"there are no API keys, and others can reach {host or 'all addresses'}: make one "
            "with 'funnel keys create --name web --scope recommend --scope events', or set "
            "FUNNEL_OPEN=yes if a gateway of yours keeps others out"
        )
    _log.warning("no API keys: whoever reaches %s may do everything", host or "any address")
    if not _is_loopback(host) and not read_settings().allowed_hosts:
        _log.warning("only requests to 'localhost' are answered: set FUNNEL_ALLOWED_HOSTS")
    return None


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def needs_key(method: str, path: str) -> bool:
    """Return whether a route asks for a key; probes do not."""
    return path not in _PROBES or method == "DELETE"


def required_scope(method: str, path: str) -> Scope | None:
    """Return the scope that a route asks for; None: any key will do.

    A route that is not named here asks for admin.
    """
    if method == "DELETE":
        return Scope.ADMIN
    if path == "/v1/events":
        return Scope.EVENTS
    if path.startswith("/v1/recommendations"):
        return Scope.RECOMMEND
    if path.startswith(("/v1/users/", "/v1/items/")) and method in ("GET", "HEAD"):
        return Scope.RECOMMEND
    return None if path in _ANY_KEY or path.startswith(f"{DOCS}/") else Scope.ADMIN


class RateLimiter:
    """Token buckets that hold a second's worth for each key.

    Every process has its own: n workers let n times the rate pass.
    """

    def __init__(self) -> None:
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, key: Key, now: float) -> float:
        """Take a token at a time in seconds; return 0, or the seconds until there is one."""
        rate = key.rate_limit
        if rate is None:
            return 0.0
        capacity = max(1.0, rate)
        tokens, last = self._buckets.get(key.id, (capacity, now))
        tokens = min(capacity, tokens + (now - last) * rate)
        self._buckets[key.id] = (tokens - 1 if tokens >= 1 else tokens, now)
        return 0.0 if tokens >= 1 else (1 - tokens) / rate


class AccessMiddleware:
    """Refuses a request without a valid key, over its key's rate, or out of its key's scopes."""

    def __init__(self, app: ASGIApp, keys: KeyRing | None) -> None:
        """``keys``: None: everybody may do everything."""
        self._app = app
        self._keys = keys
        self._rates = RateLimiter()

    async def __call__(self, scope: Connection, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] == "websocket":  # the API has none: one added later is not left open
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] == "http" and self._keys is not None:
            path = scope["path"].removeprefix(scope.get("root_path", ""))
            if needs_key(scope["method"], path):
                key = self._valid_key(self._keys, scope["headers"])
                self._check_rate(key)
                _check_scope(key, scope["method"], path)
        await self._app(scope, receive, send)

    def _valid_key(self, keys: KeyRing, headers: Iterable[tuple[bytes, bytes]]) -> Key:
        key = keys.find(_presented_key(headers))
        if key is None:
            detail = "send one as 'Authorization: Bearer ...' or 'X-API-Key: ...'"
            challenge = {"WWW-Authenticate": "Bearer"}
            raise RequestRefused(401, "a valid API key is needed", detail, challenge)
        return key

    def _check_rate(self, key: Key) -> None:
        if wait_s := self._rates.take(key, time.monotonic()):
            detail = f"this key may send {key.rate_limit:g} a second"
            headers = {"Retry-After": str(math.ceil(wait_s))}
            raise RequestRefused(429, "too many requests", detail, headers)


def _check_scope(key: Key, method: str, path: str) -> None:
    scope = required_scope(method, path)
    if scope is not None and scope not in key.scopes and Scope.ADMIN not in key.scopes:
        detail = f"the scope '{scope}' is needed"
        raise RequestRefused(403, "this API key may not do that", detail)


def _presented_key(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """Return the text of the key that a request shows, "" if it shows none."""
    authorization = b""
    api_key = b""
    for name, value in headers:
        if name == b"authorization":
            authorization = value
        elif name == b"x-api-key":
            api_key = value
    kind, _, credentials = authorization.partition(b" ")
    # Credentials of another kind are for somebody else on the way, such as a gateway.
    text = credentials if kind.lower() == b"bearer" else api_key
    return text.strip().decode("latin-1")
