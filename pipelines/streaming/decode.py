"""An entry of the event log as the rows that the stream folds: one for its user, one for its item."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from zlib import crc32

import pyarrow as pa

from feature_repo.recent import event_micros
from pipelines.recent import ITEM_KEY, USER_KEY

POISON_KEY = "p"
"""First letter of the key of an entry that cannot be read; the payload says why, a line break, then the entry."""

SCHEMA = pa.schema(
    [
        ("shard", pa.int32()),
        ("key", pa.string()),
        ("position", pa.string()),
        ("micros", pa.int64()),
        ("event_id", pa.string()),
        ("item", pa.string()),
        ("kind", pa.int32()),
        ("payload", pa.string()),
        ("event_time", pa.timestamp("us", tz="UTC")),
    ]
)
"""Rows of the source. ``payload`` is on the user's row only; ``kind`` is the type's place in the spec."""

SPARK_SCHEMA = (
    "shard int, key string, position string, micros long, event_id string, item string, kind int, "
    "payload string, event_time timestamp"
)


class PoisonError(ValueError):
    """An entry is no event; the message says why."""


def decode(payload: str, position: str, types: Sequence[str]) -> tuple[str, str, str, int, int]:
    """Return an entry's user, item, event id, type (its place in ``types``) and time in microseconds.

    Raises:
        PoisonError: it is no event of this data set.

    """
    try:
        event = json.loads(payload)
    except ValueError as error:
        raise PoisonError(f"not JSON: {error}") from None
    if not isinstance(event, dict):
        raise PoisonError("not an object")
    for name in ("user_id", "item_id", "event_id"):
        if not isinstance(event.get(name), str) or not event[name]:
            raise PoisonError(f"{name} is not a string")
    if event.get("type") not in types:
        raise PoisonError(f"unknown type {event.get('type')!r}")
    time = event.get("timestamp")
    if isinstance(time, bool) or not isinstance(time, int | float) or not math.isfinite(time) or time < 0:
        raise PoisonError("timestamp is not a number of seconds")
    kind = types.index(event["type"])
    return event["user_id"], event["item_id"], event["event_id"], kind, event_micros(time, position)


def to_batch(entries: Sequence[tuple[str, str]], types: Sequence[str], shards: Sequence[int]) -> pa.RecordBatch:
    """Return the rows of log entries (position, payload); a bad entry becomes a row under ``POISON_KEY``.

    ``shards`` are the numbers that the keys are spread over.
    """
    rows: list[tuple[str, str, int, str, str, int, str | None]] = []
    for position, payload in entries:
        try:
            user, item, event_id, kind, micros = decode(payload, position, types)
        except PoisonError as error:
            rows.append((POISON_KEY, position, 0, "", "", 0, f"{error}\n{payload}"))
            continue
        rows.append((USER_KEY + user, position, micros, event_id, item, kind, payload))
        rows.append((ITEM_KEY + item, position, micros, "", "", kind, None))
    columns = list(zip(*rows, strict=True)) or [()] * 7
    micros = pa.array(columns[2], pa.int64())
    arrays = [
        pa.array([shards[crc32(key.encode()) % len(shards)] for key in columns[0]], pa.int32()),
        *(pa.array(column, field.type) for column, field in zip(columns, list(SCHEMA)[1:8], strict=True)),
        micros.cast(pa.timestamp("us")).cast(pa.timestamp("us", tz="UTC")),
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)
