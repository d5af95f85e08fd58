"""Who may call a server that asks for no keys: this machine, and no page in a browser.

A page of any site can send requests to this machine, also under a name of its own that it lets
point here (DNS rebinding). Such a request names a foreign host, or has a body that is not JSON,
which a browser sends without asking the server first.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from serving.http.problem_details import RequestRefused

LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})
"""Names of this machine."""

ANY_HOST = "*"

_PROBES = frozenset({"/healthz", "/readyz"})


class LocalClientsMiddleware:
    """Refuses requests to foreign host names and bodies that are not JSON; probes are free."""

    def __init__(self, app: ASGIApp, hosts: Collection[str] = ()) -> None:
        """``hosts``: names beside those of this machine, for a gateway; ``*``: any."""
        self._app = app
        self._any = ANY_HOST in hosts
        self._hosts = LOCAL_HOSTS | {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] == "http" and scope["path"] not in _PROBES:
            headers = dict(scope["headers"])
            if not self._any and _host_name(headers.get(b"host", b"")) not in self._hosts:
                raise RequestRefused(
                    421,
                    "this server does not answer to that host name",
                    "ask localhost, or add the name to FUNNEL_ALLOWED_HOSTS on the server",
                )
            if _has_body(headers) and not _is_json(headers.get(b"content-type", b"")):
                raise RequestRefused(
                    415, "the body must be JSON", "send it with 'Content-Type: application/json'"
                )
        await self._app(scope, receive, send)


def _host_name(header: bytes) -> str:
    """Return the name of a Host header in lower case, without a port; "" if it is none."""
    try:
        return urlsplit(f"//{header.decode('latin-1')}").hostname or ""
    except ValueError:
        return ""


def _has_body(headers: Mapping[bytes, bytes]) -> bool:
    return headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers


def _is_json(content_type: bytes) -> bool:
    return content_type.partition(b";")[0].strip().lower() == b"application/json"
