"""``funnel stream --status``: how the job is doing, from what it leaves in Redis."""

from __future__ import annotations

import json
import time
from typing import Any

import redis

from feature_repo.events.log_names import DEAD_LETTERS, LOG, STATUS
from feature_repo.stores.feature_store import redis_client
from feature_repo.workspace import Workspace
from pipelines import display
from pipelines.streaming.lease import holder

_COUNT = 1_000
_MOST = 1_000_000


def stream_status(client: redis.Redis) -> dict[str, Any]:
    """Return who runs the job, what it has done and what waits for it.

    ``lag_ms``: from the acceptance of the last batch's newest event to its features being readable;
    ``pending``: entries that no finished batch has; ``oldest_pending_s``: how long the first of
        them waits.
    """
    raw: bytes | None = client.get(STATUS)  # type: ignore[assignment]
    status: dict[str, Any] = json.loads(raw) if raw else {}
    pending, oldest = _pending(client, status.get("position", "0-0"))
    return {
        "running": holder(client),
        **{
            name: status.get(name)
            for name in ("events", "late", "poison", "position", "lag_ms", "batch", "batch_events")
        },
        "batch_s": status.get("batch_s"),
        "last_batch_s_ago": round(time.time() - status["at"], 1) if "at" in status else None,
        "watermark": _utc(status.get("watermark")),
        "newest_event": _utc(status.get("event_time")),
        "log_length": client.xlen(LOG),
        "pending": pending,
        "oldest_pending_s": oldest,
        "dead_letters": client.xlen(DEAD_LETTERS),
    }


def _pending(client: redis.Redis, position: str) -> tuple[int, float]:
    count, oldest = 0, 0.0
    while count < _MOST:
        entries: list[Any] = client.xrange(LOG, min=f"({position}", count=_COUNT)  # type: ignore[assignment]
        if entries and not count:
            oldest = time.time() - int(entries[0][0].partition(b"-")[0]) / 1_000
        count += len(entries)
        if len(entries) < _COUNT:
            break
        position = entries[-1][0].decode()
    return count, round(oldest, 1)


def _utc(moment: float | None) -> str | None:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(moment)) if moment else None


def show_status(workspace: Workspace) -> None:
    """Print the status as a table, and as a line of JSON."""
    status = stream_status(redis_client(workspace))
    running = status["running"]
    who = f"process {running['pid']} on {running['host']}" if running else "no job runs"
    display.table(
        "Stream", ["", ""], [["job", who], *([k, v] for k, v in status.items() if k != "running")]
    )
    display.result(json.dumps(status))
