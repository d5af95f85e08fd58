"""The status of the streaming job, as it is stored and as ``funnel stream --status`` shows it."""

from __future__ import annotations

import time
from typing import Any

import redis
from pydantic import BaseModel, ConfigDict

from feature_repo.events.log_names import DEAD_LETTERS, LOG, STATUS
from feature_repo.stores.feature_store import redis_client
from feature_repo.workspace import Workspace
from pipelines import display
from pipelines.streaming.lease import JobHolder, holder

_ENTRIES_PER_READ = 1_000
_MAX_PENDING_COUNTED = 1_000_000


class BatchStatus(BaseModel):
    """The job's totals, and its last batch: the JSON under the Redis key ``STATUS``.

    Attributes:
        events: accepted events, in total.
        late: events behind the watermark, in total; they count like others.
        poison: unreadable log entries, in total.
        batch: generation of the checkpoint and number of the last batch.
        position: newest log position that a finished batch has.
        lag_ms: from the acceptance of the batch's newest event to its features being readable.
        event_time: newest event time of the last batch, epoch seconds.
        batch_events: events of the last batch.
        batch_s: duration of the last batch.
        at: when the last batch was finished, epoch seconds.
        watermark: event-time watermark, epoch seconds.

    """

    model_config = ConfigDict(frozen=True)

    events: int = 0
    late: int = 0
    poison: int = 0
    batch: tuple[int, int] | None = None
    position: str | None = None
    lag_ms: int | None = None
    event_time: float | None = None
    batch_events: int | None = None
    batch_s: float | None = None
    at: float | None = None
    watermark: float | None = None

    @classmethod
    def read(cls, client: redis.Redis) -> BatchStatus | None:
        """Return the stored status, None before the first batch."""
        stored: bytes | None = client.get(STATUS)  # type: ignore[assignment]
        return cls.model_validate_json(stored) if stored else None

    def write(self, client: redis.Redis) -> None:
        """Store the status."""
        client.set(STATUS, self.model_dump_json(exclude_none=True))


class StreamStatus(BaseModel):
    """Who runs the job, what it has done, and what waits for it; see ``BatchStatus`` for the rest.

    Attributes:
        running: the process that runs the job; None: no job runs.
        last_batch_s_ago: seconds since the last batch was finished.
        watermark: event-time watermark, UTC.
        newest_event: newest event time of the last batch, UTC.
        log_length: entries of the event log, finished ones included.
        pending: entries of the log that no finished batch has.
        oldest_pending_s: how long the first of them has waited.
        dead_letters: unreadable entries that were set aside.

    """

    model_config = ConfigDict(frozen=True)

    running: JobHolder | None = None
    events: int | None = None
    late: int | None = None
    poison: int | None = None
    position: str | None = None
    lag_ms: int | None = None
    batch: tuple[int, int] | None = None
    batch_events: int | None = None
    batch_s: float | None = None
    last_batch_s_ago: float | None = None
    watermark: str | None = None
    newest_event: str | None = None
    log_length: int = 0
    pending: int = 0
    oldest_pending_s: float = 0.0
    dead_letters: int = 0


def stream_status(client: redis.Redis) -> StreamStatus:
    """Return the status of the job and of its log."""
    stored = BatchStatus.read(client)
    totals = stored.model_dump(exclude={"event_time", "at", "watermark"}) if stored else {}
    last = stored or BatchStatus()
    pending, oldest_pending_s = _pending(client, last.position or "0-0")
    return StreamStatus(
        **totals,
        running=holder(client),
        last_batch_s_ago=round(time.time() - last.at, 1) if last.at is not None else None,
        watermark=_utc(last.watermark),
        newest_event=_utc(last.event_time),
        log_length=client.xlen(LOG),  # type: ignore[arg-type]
        pending=pending,
        oldest_pending_s=oldest_pending_s,
        dead_letters=client.xlen(DEAD_LETTERS),  # type: ignore[arg-type]
    )


def _pending(client: redis.Redis, position: str) -> tuple[int, float]:
    """Return the number of entries after a position, and the age of the first in seconds."""
    count = 0
    oldest_s = 0.0
    while count < _MAX_PENDING_COUNTED:
        entries: list[Any] = client.xrange(LOG, min=f"({position}", count=_ENTRIES_PER_READ)  # type: ignore[assignment]
        if entries and not count:
            oldest_s = time.time() - int(entries[0][0].partition(b"-")[0]) / 1_000
        count += len(entries)
        if len(entries) < _ENTRIES_PER_READ:
            break
        position = entries[-1][0].decode()
    return count, round(oldest_s, 1)


def _utc(epoch_s: float | None) -> str | None:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(epoch_s)) if epoch_s else None


def show_status(workspace: Workspace) -> None:
    """Print the status as a table and as a line of JSON."""
    status = stream_status(redis_client(workspace))
    job = str(status.running) if status.running else "not running"
    rows = [["job", job], *([name, value] for name, value in status if name != "running")]
    display.table("Stream", ["", ""], rows)
    display.result(status.model_dump_json())
