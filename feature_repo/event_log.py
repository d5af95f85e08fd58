"""Names that both ends of the event log share; light, because Spark's workers import them."""

from __future__ import annotations

LOG = "funnel:events"
"""Redis Stream of accepted events."""

COMMITTED = "funnel:events:committed"
"""Key of the newest entry that the streaming job has finished with: entries up to it may be trimmed."""


def recent_key(user_id: str) -> str:
    """Return the Redis key of a user's overlay: accepted events, newest first."""
    return f"funnel:recent:{user_id}"
