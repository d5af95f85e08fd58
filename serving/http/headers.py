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

_POLICY = b"content-security-policy"

POLICY = b"default-src 'none'; frame-ancestors 'none'"
"""Content security policy of data: a browser loads nothing for it."""


class SecurityHeadersMiddleware:
    """Adds the security headers to every answer; one that has a policy of its own keeps it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", ()), *_ALWAYS]
                if not any(name == _POLICY for name, _ in headers):
                    headers.append((_POLICY, POLICY))
                message["headers"] = headers
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
