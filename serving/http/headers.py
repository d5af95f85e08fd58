"""Headers that every response carries: what a browser may do with it, and which web pages may read it."""

from __future__ import annotations

import os
import re
from collections.abc import Collection

from feature_repo.errors import FunnelError

Headers = list[tuple[bytes, bytes]]
"""Headers as ASGI has them, names in lower case."""

_ORIGIN = re.compile(r"https?://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:]+\])(:\d{1,5})?")

_ALWAYS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
]

POLICY = b"default-src 'none'; frame-ancestors 'none'"
"""Content security policy of data: a browser loads nothing for it."""

# The page has its own script and styles in its text, hence 'unsafe-inline'; the hosts are those of
# FastAPI's page.
DOCS_POLICY = (
    b"default-src 'none'; script-src 'unsafe-inline' https://cdn.jsdelivr.net; "
    b"style-src 'unsafe-inline' https://cdn.jsdelivr.net; img-src 'self' data: https://fastapi.tiangolo.com; "
    b"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Content security policy of the page ``/docs``: what Swagger UI loads, and nothing more."""

PREFLIGHT: Headers = [
    (b"access-control-allow-methods", b"GET, POST, PUT, DELETE"),
    (b"access-control-allow-headers", b"authorization, content-type, x-api-key"),
    (b"access-control-max-age", b"600"),
]
"""What a browser is told before it sends a request from a page of another origin."""


class BadOrigin(FunnelError):
    """``FUNNEL_CORS_ORIGINS`` holds something that no browser sends as its origin."""


def allowed_origins() -> list[str]:
    """Return the origins in ``FUNNEL_CORS_ORIGINS`` (comma separated), by default none.

    Raises:
        BadOrigin: one of them is not ``http(s)://host[:port]``.

    """
    origins = [
        part.strip()
        for part in os.environ.get("FUNNEL_CORS_ORIGINS", "").split(",")
        if part.strip()
    ]
    for origin in origins:
        if not _ORIGIN.fullmatch(origin):
            raise BadOrigin(
                f"FUNNEL_CORS_ORIGINS: '{origin}' is not of the form https://host or https://host:port"
            )
    return origins


class ResponseHeaders:
    """The headers of every response, ready made for each origin that is allowed."""

    def __init__(self, policy: bytes, origins: Collection[str]) -> None:
        """``policy``: the content security policy; ``origins``: those of web pages that may read responses."""
        vary = [(b"vary", b"origin")] if origins else []
        self._others: Headers = [*_ALWAYS, (b"content-security-policy", policy), *vary]
        exposed = (b"access-control-expose-headers", b"retry-after")
        self._allowed = {
            name: [*self._others, (b"access-control-allow-origin", name), exposed]
            for name in (origin.lower().encode() for origin in origins)  # as browsers send them
        }

    def allow(self, origin: bytes | None) -> bool:
        """Return whether pages of an origin may read responses."""
        return origin in self._allowed

    def to(self, origin: bytes | None) -> Headers:
        """Return the headers of a response to an origin; None: the request named none."""
        return self._others if origin is None else self._allowed.get(origin, self._others)
