"""The event as every log, the overlay and the streaming job know it; light for Spark's workers."""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict

import orjson


class StoredEvent(TypedDict):
    """An accepted event. The API checks what it receives by ``serving.api.schemas.Event``.

    ``timestamp`` is in epoch seconds.
    """

    event_id: str
    user_id: str
    item_id: str
    type: str
    timestamp: float
    value: NotRequired[float]
    request_id: NotRequired[str]
    context: NotRequired[dict[str, str | float]]


def encode(event: Any) -> str:
    """Return an event as all logs store it: JSON without spaces."""
    return orjson.dumps(event).decode()


def parse_stored(payload: str | bytes) -> StoredEvent:
    """Return what a log has as an event; nothing but that it is JSON is checked."""
    event: StoredEvent = orjson.loads(payload)
    return event
