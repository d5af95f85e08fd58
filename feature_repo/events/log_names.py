"""Redis keys and the address of the event log; light, because Spark's workers import them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

LOG = "funnel:events"
"""Redis Stream of accepted events."""

COMMITTED = "funnel:events:committed"
"""Key of the newest entry that the streaming job has processed; older ones may be trimmed."""

DEAD_LETTERS = "funnel:events:dead"
"""Redis Stream of unreadable entries, each with the reason and its position in the log."""

STATUS = "funnel:stream:status"
"""Status after the streaming job's last batch: JSON, see ``pipelines/streaming/sink.py``."""

LEASE = "funnel:stream:lease"
"""The process that runs the streaming job; absent when none does."""


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


def log_address() -> KafkaAddress | Path | None:
    """Return where accepted events go by ``FUNNEL_EVENT_LOG``: a topic, a folder, or None (Redis).

    Raises:
        SettingsError: it says none of ``redis``, ``kafka://host:port[,host:port]/topic`` and
            ``files:/a/folder``.

    """
    from feature_repo.settings import EVENT_LOG, read_settings  # not needed by Spark's workers

    address = EVENT_LOG.fullmatch(read_settings().event_log)
    if address and address["topic"]:
        return KafkaAddress(address["servers"], address["topic"])
    return Path(address["folder"]) if address and address["folder"] else None
