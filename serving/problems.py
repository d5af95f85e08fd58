"""Problem details (RFC 9457): how every error looks, whoever answers it."""

from __future__ import annotations

from typing import Any

import orjson

MEDIA_TYPE = "application/problem+json"


def problem(status: int, title: str, detail: Any) -> bytes:
    """Return the body of an error."""
    return orjson.dumps({"type": "about:blank", "title": title, "status": status, "detail": detail})
