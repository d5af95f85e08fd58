"""Names that both ends of the event log share; light, because Spark's workers import them."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from feature_repo.errors import FunnelError

LOG = "funnel:events"
"""Redis Stream of accepted events."""

COMMITTED = "funnel:events:committed"
"""Key of the newest entry that the streaming job has finished with: entries up to it may be trimmed."""

DEAD_LETTERS = "funnel:events:dead"
"""Redis Stream of entries that could not be read, each with its reason and its place in the log."""

STATUS = "funnel:stream:status"
"""What the streaming job's last batch left: JSON, see ``pipelines/streaming/sink.py``."""

LEASE = "funnel:stream:lease"
"""Who runs the streaming job; gone when nobody does."""

_KAFKA = re.compile(r"kafka://([^/\s,]+:\d+(?:,[^/\s,]+:\d+)*)/([A-Za-z0-9._-]{1,249})")


class BadLogAddress(FunnelError):
    """``FUNNEL_EVENT_LOG`` names no event log."""


@dataclass(frozen=True)
class KafkaAddress:
    """A topic; ``servers`` is ``host:port[,host:port]``."""

    servers: str
    topic: str


def recent_key(user_id: str) -> str:
    """Return the Redis key of a user's overlay: accepted events, newest first."""
    return f"funnel:recent:{user_id}"


def batch_key(user_id: str) -> str:
    """Return the Redis key of the list that ``funnel batch`` made for a user."""
    return f"funnel:recommendations:{user_id}"


def encode(event: Any) -> str:
    """Return an event as every log keeps it: JSON without spaces."""
    return orjson.dumps(event).decode()


def log_address() -> KafkaAddress | Path | None:
    """Return where ``FUNNEL_EVENT_LOG`` says that accepted events go: a topic, a folder, or None for Redis.

    Raises:
        BadLogAddress: it says none of ``redis``, ``kafka://host:port[,host:port]/topic`` and
            ``files:/a/folder``.

    """
    text = os.environ.get("FUNNEL_EVENT_LOG", "") or "redis"
    if text == "redis":
        return None
    if kafka := _KAFKA.fullmatch(text):
        return KafkaAddress(*kafka.groups())
    if text.startswith("files:/"):
        return Path(text.removeprefix("files:"))
    raise BadLogAddress(
        f"FUNNEL_EVENT_LOG={text}: choose 'redis', 'kafka://host:port[,host:port]/topic' or 'files:/a/folder'"
    )
