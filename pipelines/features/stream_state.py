"""The state of every key after the ingested events, by Spark batch, from which a stream starts.

The states are made by the stream's own code (``feature_repo/aggregates``; workers need this
package).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from operator import itemgetter

import pyarrow as pa
from pyspark.sql import DataFrame

from feature_repo import columns as c
from feature_repo.aggregates.definition import AggregateView
from feature_repo.aggregates.key_state import KeyState
from pipelines.features.aggregates import EVENT_MICROS, occurrences_of

KEY = "key"
STATE_COLUMN = "state"

USER_KEY = "u"
ITEM_KEY = "i"
"""First letter of a key in the stream's state: of a user, of an item."""

STATE = "stream_state"
"""Table of the state of every key."""

POSITION_FILE = "log_position.json"
"""File beside the tables: the newest entry of the event log among their events."""

_ROWS_PER_BATCH = 1_000
_SCHEMA = pa.schema([(KEY, pa.string()), (STATE_COLUMN, pa.string())])


def stream_state(events: DataFrame, position: str, views: Sequence[AggregateView]) -> DataFrame:
    """Return ``key`` and ``state`` (JSON) of every user and item that has views.

    Args:
        events: as ``read_events`` returns them.
        position: the newest entry of the event log among the events.
        views: what the stream computes.

    """
    parts = []
    for prefix, column in ((USER_KEY, c.USER), (ITEM_KEY, c.ITEM)):
        of_key = [view for view in views if view.key == column]
        if of_key:
            # Sorted, so that a rerun gives the same.
            rows = events.repartition(column).sortWithinPartitions(column, EVENT_MICROS, c.EVENT_ID)
            others = rows.select(column, *(name for name in rows.columns if name != column))
            fold = _fold(prefix, position, of_key)
            parts.append(others.mapInArrow(fold, f"{KEY} string, {STATE_COLUMN} string"))
    table = parts[0]
    for part in parts[1:]:
        table = table.unionByName(part)
    return table


def _fold(
    prefix: str, position: str, views: Sequence[AggregateView]
) -> Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    def fold(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        happened = (
            pair
            for batch in batches
            for pair in zip(batch.column(0).to_pylist(), occurrences_of(batch), strict=True)
        )
        folded: list[dict[str, str]] = []
        for key, group in groupby(happened, key=itemgetter(0)):
            state = KeyState.empty(views, position)
            state.add(event for _, event in group)
            folded.append({KEY: prefix + key, STATE_COLUMN: state.dump()})
            if len(folded) == _ROWS_PER_BATCH:
                yield pa.RecordBatch.from_pylist(folded, _SCHEMA)
                folded = []
        yield pa.RecordBatch.from_pylist(folded, _SCHEMA)

    return fold
