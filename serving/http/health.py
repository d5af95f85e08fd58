"""Liveness and readiness: whether to restart the process, and whether to send it requests."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

from serving.api.schemas import Liveness, Readiness, StreamStatus
from serving.event_log.stream_state import StreamState

LAG_S = 60.0
"""Streamed features with a larger lag count as lost; a batch takes about a second."""

ITEMS_AGE_S = 26 * 3_600.0
"""Older item counters count as lost; they are made once a day."""


class HasId(Protocol):
    """A release, as far as this module goes."""

    @property
    def id(self) -> str:
        """Hash of its content."""


class Serving(Protocol):
    """An engine, as far as this module goes: made means loaded and warmed up."""

    @property
    def release(self) -> HasId:
        """The release being served."""

    @property
    def items_as_of(self) -> str | None:
        """When the item counters were read (ISO 8601); None: they are the release's own."""


def liveness() -> Liveness:
    """Return the answer of a live process; asked in a coroutine, it proves that the loop runs."""
    return {"status": "ok"}


def readiness(
    engine: Serving | None, stream: StreamState | None, now: float, *, stopping: bool = False
) -> tuple[int, Readiness]:
    """Return the HTTP status, and what is ready and what is lost.

    A loss does not make it 503: every request can still be answered, and with all servers out at
    once none would be.

    Args:
        engine: None until it is made.
        stream: the streaming job's state; None: the online store does not answer.
        now: epoch seconds.
        stopping: the process is on its way out.

    """
    if engine is None or stopping:
        return 503, {"status": "stopping" if stopping else "starting"}
    age = items_age(engine, now)
    lost = _lost(age, stream)
    job: StreamStatus | None = None
    if stream is not None and stream.running is not None:
        job = {"running": stream.running, "lag_s": stream.lag_s}
    return 200, {
        "status": "degraded" if lost else "ready",
        "release": engine.release.id,
        "online_store": stream is not None,
        "lost": lost,
        "items_age_s": None if age is None else round(age, 1),
        "stream": job,
    }


def items_age(engine: Serving, now: float) -> float | None:
    """Return the age of the item counters in seconds; None: they are the release's own."""
    if engine.items_as_of is None:
        return None
    return max(0.0, now - datetime.fromisoformat(engine.items_as_of).timestamp())


def _lost(age: float | None, stream: StreamState | None) -> list[str]:
    """Return what is missing or stale, in words that clients may rely on."""
    losses = {
        "online_store": stream is None,
        "item_counters": age is None
        or age > ITEMS_AGE_S
        or (stream is not None and not stream.item_counters),
        "user_features": stream is not None and not stream.user_features,
        "event_durability": stream is not None and stream.durable is False,
        "stream_job": stream is not None and stream.running is False,
        "stream_lag": stream is not None and (stream.lag_s or 0.0) > LAG_S,
    }
    return [name for name, lost in losses.items() if lost]
