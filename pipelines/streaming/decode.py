"""Decodes an entry of the event log into rows to add: one of its user, and one of its item."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple
from zlib import crc32

import pyarrow as pa
from pyspark.sql.pandas.types import from_arrow_schema

from feature_repo.cell_values import BOUND, MAX_NUMBER, stands_for_nothing
from feature_repo.events.log_position import event_micros
from feature_repo.events.stored import StoredEvent, encode, parse_stored
from pipelines.features.stream_state import ITEM_KEY, USER_KEY

POISON_KEY = "p"
"""Key of an unreadable entry; ``poison`` is the reason, a line break and the entry."""

SCHEMA = pa.schema(
    [
        ("shard", pa.int32()),
        ("key", pa.string()),
        ("position", pa.string()),
        ("micros", pa.int64()),
        ("event_id", pa.string()),
        ("user", pa.string()),
        ("item", pa.string()),
        ("kind", pa.int32()),
        ("value", pa.float64()),
        ("request_id", pa.string()),
        ("context", pa.string()),
        ("poison", pa.string()),
        ("event_time", pa.timestamp("us", tz="UTC")),
    ]
)
"""Rows of the source. ``kind`` is the index of the type in the spec; ``context`` is JSON;
``request_id`` is set on the user's row only, ``poison`` on that of an unreadable entry."""

SPARK_SCHEMA = from_arrow_schema(SCHEMA)
"""``SCHEMA`` as Spark's type."""


class LogReading(NamedTuple):
    """How a log is read.

    Attributes:
        types: the spec's event types in order.
        shards: the numbers that keys are distributed over.
        items: whether items have aggregates that the stream computes.
        start: the position after which a new checkpoint starts.
        max_entries: maximum entries per batch.

    """

    types: list[str]
    shards: list[int]
    items: bool = False
    start: str = "0-0"
    max_entries: int = 100_000


class PoisonError(ValueError):
    """An entry is not an event; the message says why."""


def checked_event(payload: str, types: Sequence[str]) -> StoredEvent:
    """Return an entry's event. Others than the API may write to a log: nothing is taken on trust.

    Raises:
        PoisonError: the entry is not an event of this data set.

    """
    try:
        event = parse_stored(payload)
    except ValueError as error:
        raise PoisonError(f"not JSON: {error}") from None
    if not isinstance(event, dict):
        raise PoisonError("not an object")
    for name in ("user_id", "item_id", "event_id"):
        if not isinstance(event.get(name), str) or not event[name]:
            raise PoisonError(f"{name} is not a string")
        if stands_for_nothing(event[name]):
            raise PoisonError(f"{name} stands for a missing id")
    if event.get("type") not in types:
        raise PoisonError(f"unknown type {event.get('type')!r}")
    if not _is_number(event.get("timestamp")) or event["timestamp"] < 0:
        raise PoisonError("timestamp is not a number of seconds")
    if event.get("value") is not None and not _is_number(event["value"]):
        raise PoisonError("value is not a number")
    if abs(event.get("value") or 0.0) > MAX_NUMBER:
        raise PoisonError(f"value {BOUND}")
    if not isinstance(event.get("request_id", ""), str | None):
        raise PoisonError("request_id is not a string")
    return event


def context_text(event: StoredEvent) -> str | None:
    """Return an event's context as JSON; None: it has none."""
    context = event.get("context")
    return encode(context) if context and isinstance(context, dict) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def to_batch(entries: Sequence[tuple[str, str]], reading: LogReading) -> pa.RecordBatch:
    """Return the rows of log entries (position, payload), those of bad ones under ``POISON_KEY``.

    An event has a row of its user, and one of its item where items have aggregates.
    """
    rows: list[tuple[Any, ...]] = []
    types, shards = reading.types, reading.shards
    for position, payload in entries:
        try:
            event = checked_event(payload, types)
        except PoisonError as error:
            reason = f"{error}\n{payload}"
            rows.append((POISON_KEY, position, 0, "", "", "", 0, None, None, None, reason))
            continue
        kind = types.index(event["type"])
        micros = event_micros(event["timestamp"], position)
        user, item = event["user_id"], event["item_id"]
        row = (position, micros, event["event_id"], user, item, kind, event.get("value"))
        context = context_text(event)
        rows.append((USER_KEY + user, *row, event.get("request_id"), context, None))
        if reading.items:
            rows.append((ITEM_KEY + item, *row, None, context, None))
    columns = list(zip(*rows, strict=True)) or [()] * 11
    micros = pa.array(columns[2], pa.int64())
    arrays = [
        pa.array([shards[crc32(key.encode()) % len(shards)] for key in columns[0]], pa.int32()),
        *(
            pa.array(column, field.type)
            for column, field in zip(columns, list(SCHEMA)[1:-1], strict=True)
        ),
        micros.cast(pa.timestamp("us", tz="UTC")),
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)
