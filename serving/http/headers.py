"""What a browser may do with an answer: security headers, and the origins of other pages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_ALWAYS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
]

DOCS = "/docs"

POLICY = b"default-src 'none'; frame-ancestors 'none'"
"""Content security policy of data: a browser loads nothing for it."""

# The page has its own script and styles in its text, hence 'unsafe-inline'; the hosts are those of
# FastAPI's page.
DOCS_POLICY = (
    b"default-src 'none'; script-src 'unsafe-inline' https://cdn.jsdelivr.net; "
    b"style-src 'unsafe-inline' https://cdn.jsdelivr.net; "
    b"img-src 'self' data: https://fastapi.tiangolo.com; "
    b"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Content security policy of the page ``/docs``: what Swagger UI loads, and nothing more."""


class SecurityHeadersMiddleware:
    """Adds the security headers to every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._data = [*_ALWAYS, (b"content-security-policy", POLICY)]
        self._docs = [*_ALWAYS, (b"content-security-policy", DOCS_POLICY)]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                path = scope["path"].removeprefix(scope.get("root_path", ""))
                added = self._docs if path == DOCS else self._data
                message["headers"] = [*message.get("headers", ()), *added]
            await send(message)

        await self._app(scope, receive, send_with_headers)


def cors_options(origins: Sequence[str]) -> dict[str, Any]:
    """Return the options of Starlette's CORSMiddleware: what pages of these origins may do."""
    return {
        "allow_origins": [origin.lower() for origin in origins],  # as browsers send them
        "allow_methods": ("GET", "POST", "PUT", "DELETE"),
        "allow_headers": ("authorization", "content-type", "x-api-key"),
        "expose_headers": ("retry-after",),
        "max_age": 600,
    }
