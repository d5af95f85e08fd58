"""Problem details (RFC 9457): how every error looks, whoever answers it."""

from __future__ import annotations

from typing import Any

import orjson

MEDIA_TYPE = "application/problem+json"


PROBLEM_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
    },
}


def problem(status: int, title: str, detail: Any) -> bytes:
    """Return the body of an error."""
    return orjson.dumps({"type": "about:blank", "title": title, "status": status, "detail": detail})
