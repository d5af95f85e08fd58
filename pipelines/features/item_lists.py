"""Tables of each user's recent items.

The history of positive events, and the items seen by type.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from operator import itemgetter
from typing import Any

import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from feature_repo import columns as c
from feature_repo.aggregates.units import MICROS
from pipelines.features.aggregates import EVENT_MICROS

_STAMP = "_stamp"
_KIND = "_kind"


def user_history(events: DataFrame) -> DataFrame:
    """Return, at each positive event, the user's last ``HISTORY_LENGTH`` items, newest last.

    An item that comes again moves to the end, so that the items (array<string>) are distinct; the
    times (array<bigint>, epoch seconds) are those of their latest positive events. A row includes
    the events of its own time.
    """
    liked = events.where(c.POSITIVE).withColumns({_STAMP: F.col(EVENT_MICROS), _KIND: F.lit(0)})
    lists = _recent(liked, c.HISTORY_LENGTH, 1)
    stamp = F.timestamp_micros(_STAMP).alias(c.EVENT_TIMESTAMP)
    return lists.select(
        c.USER,
        stamp,
        F.col("items_0").alias(c.HISTORY_ITEMS),
        F.col("times_0").alias(c.HISTORY_TIMES),
    )


def _recent(events: DataFrame, length: int, lists: int) -> DataFrame:
    """Fold each user's events, in order, into lists of recent items; one row per ``_STAMP``."""
    schema = [f"{c.USER} string", f"{_STAMP} bigint"]
    schema += [f"items_{i} array<string>, times_{i} array<bigint>" for i in range(lists)]
    ordered = events.sortWithinPartitions(c.USER, EVENT_MICROS, c.EVENT_ID)
    rows = ordered.select(
        c.USER, _STAMP, _KIND, c.ITEM, F.floor(F.col(EVENT_MICROS) / MICROS).alias(EVENT_MICROS)
    )
    return rows.mapInArrow(recent_lists(length, lists), ", ".join(schema))


def recent_lists(
    length: int, lists: int
) -> Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """Return the fold of ``_recent``, a closure: Spark ships it to workers without this package."""
    types = [pa.string(), pa.int64(), *[pa.list_(pa.string()), pa.list_(pa.int64())] * lists]
    batch_size = 500_000

    def snapshots(
        batches: Iterable[pa.RecordBatch],
    ) -> Iterator[tuple[str, int, list[dict[str, int]]]]:
        """Yield user, stamp and lists (items with their seconds, latest last) at each stamp.

        The lists are changed in place: the caller copies them before it asks for the next.
        """
        rows = (
            row
            for batch in batches
            for row in zip(*(column.to_pylist() for column in batch.columns), strict=True)
        )
        for user, events in groupby(rows, key=itemgetter(0)):
            recent: list[dict[str, int]] = [{} for _ in range(lists)]
            for stamp, of_stamp in groupby(events, key=itemgetter(1)):
                for _, _, kind, item, seconds in of_stamp:
                    latest = recent[kind]
                    latest.pop(item, None)  # so that it goes to the end
                    latest[item] = seconds
                    if len(latest) > length:
                        del latest[next(iter(latest))]  # the item that came longest ago
                yield user, stamp, recent

    def pack(rows: list[tuple[Any, ...]]) -> pa.RecordBatch:
        columns = [
            pa.array(column, kind)
            for column, kind in zip(zip(*rows, strict=True), types, strict=True)
        ]
        names = [f"{part}_{i}" for i in range(lists) for part in ("items", "times")]
        return pa.RecordBatch.from_arrays(columns, [c.USER, _STAMP, *names])

    def fold(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        rows: list[tuple[Any, ...]] = []
        size = 0
        for user, stamp, recent in snapshots(batches):
            rows.append(
                (
                    user,
                    stamp,
                    *(part for latest in recent for part in (list(latest), list(latest.values()))),
                )
            )
            size += sum(map(len, recent))
            if size > batch_size:
                yield pack(rows)
                rows = []
                size = 0
        if rows:
            yield pack(rows)

    return fold
