"""The streaming features of ingested events, by Spark batch, from which a new stream starts.

One row per key: the facts that the stream would hold had it read these events, and the feature rows
made from them, by the stream's own code (``feature_repo/facts.py``; workers need this package).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from feature_repo import columns as c
from feature_repo.aggregates.definition import AggregateView
from feature_repo.aggregates.state import AggregateState
from feature_repo.aggregates.units import MICROS
from feature_repo.dataset import DatasetSpec
from feature_repo.facts import PANE_S, Counts, Event, EventKinds, UserFacts, dump, load, row_of
from pipelines.features.aggregates import EVENT_MICROS

KEY = "key"
FACTS = "facts"

USER_KEY = "u"
ITEM_KEY = "i"
"""First letter of a key in the stream's state: of a user, of an item."""

STATE = "stream_state"
"""Table of the facts of every key."""

POSITION_FILE = "log_position.json"
"""File beside the tables: the newest entry of the event log among their events."""

_KIND = "_kind"
_ROWS_PER_BATCH = 1_000

ITEM_COLUMNS = [
    *((c.panes(window), pa.list_(pa.int64())) for window in PANE_S),
    (c.POSITION, pa.string()),
]
USER_COLUMNS = [
    (c.RECENT_ITEMS, pa.list_(pa.string())),
    (c.RECENT_TYPES, pa.list_(pa.string())),
    (c.RECENT_TIMES, pa.list_(pa.int64())),
    (c.RECENT_CATEGORIES, pa.list_(pa.string())),
    *ITEM_COLUMNS,
]
"""Arrow types of the features of ``item_recent`` and ``user_recent``."""

_SPARK_NAMES = {
    pa.string(): "string",
    pa.list_(pa.string()): "array<string>",
    pa.list_(pa.int64()): "array<bigint>",
}


def main_categories(ingest: Path, spec: DatasetSpec) -> dict[str, str]:
    """Return the main category of each item that has one."""
    file = ingest / "items.parquet"
    if spec.category is None or not file.is_file():
        return {}
    table = pq.read_table(file, columns=[c.ITEM, spec.category])
    pairs = zip(table[c.ITEM].to_pylist(), table[spec.category].to_pylist(), strict=True)
    return {item: value if isinstance(value, str) else value[0] for item, value in pairs if value}


def stream_state(
    events: DataFrame, spec: DatasetSpec, position: str, views: Sequence[AggregateView] = ()
) -> DataFrame:
    """Return every user's and item's ``key``, ``facts`` (JSON) and time of the last event.

    ``position`` is the newest log entry among the events; ``views`` are the declared ones.
    """
    kinds = F.array_position(F.array(*map(F.lit, spec.event_types)), F.col(c.TYPE)) - 1
    known = events.where(F.col(c.TYPE).isin(spec.event_types)).withColumn(_KIND, kinds.cast("int"))
    parts = []
    for prefix, column in ((USER_KEY, c.USER), (ITEM_KEY, c.ITEM)):
        rows = known.select(
            F.concat(F.lit(prefix), column).alias(KEY),
            F.col(EVENT_MICROS).alias(EVENT_MICROS),
            c.EVENT_ID,
            c.ITEM,
            _KIND,
            (F.col(c.VALUE).cast("double") / MICROS).alias(c.VALUE),
        )
        # Sorted, so that a rerun gives the same.
        rows = rows.repartition(KEY).sortWithinPartitions(KEY, EVENT_MICROS, c.EVENT_ID)
        of_key = [view for view in views if view.key == column]
        schema = f"{KEY} string, {FACTS} string, {EVENT_MICROS} bigint"
        parts.append(rows.mapInArrow(_fold(EventKinds.of(spec), position, of_key), schema))
    return parts[0].unionByName(parts[1])


def no_facts(key: str, position: str = "0-0", views: Sequence[AggregateView] = ()) -> Counts:
    """Return the facts of a user or item without events, by its key in the state.

    ``views``: the declared views of the key.
    """
    aggregates = [AggregateState(view) for view in views]
    kind = UserFacts if key.startswith(USER_KEY) else Counts
    return kind(position=position, aggregates=aggregates)


def _fold(
    kinds: EventKinds, position: str, views: Sequence[AggregateView]
) -> Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    def fold(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        rows = (
            row
            for batch in batches
            for row in zip(*(column.to_pylist() for column in batch.columns), strict=True)
        )
        folded: list[dict[str, Any]] = []
        for key, group in groupby(rows, key=itemgetter(0)):
            events = [Event(*row[1:]) for row in group]
            facts = no_facts(key, position, views)
            facts.fold(events, kinds)
            folded.append(
                {KEY: key, FACTS: dump(facts), EVENT_MICROS: max(event.micros for event in events)}
            )
            if len(folded) == _ROWS_PER_BATCH:
                yield pa.RecordBatch.from_pylist(folded, _STATE_SCHEMA)
                folded = []
        yield pa.RecordBatch.from_pylist(folded, _STATE_SCHEMA)

    return fold


_STATE_SCHEMA = pa.schema([(KEY, pa.string()), (FACTS, pa.string()), (EVENT_MICROS, pa.int64())])


def recent_rows(
    spark: SparkSession, state: Path, spec: DatasetSpec, ingest: Path, *, users: bool
) -> DataFrame:
    """Return ``user_recent`` or ``item_recent``, one row per key, as of its newest event."""
    prefix = USER_KEY if users else ITEM_KEY
    key = c.USER if users else c.ITEM
    columns = USER_COLUMNS if users else ITEM_COLUMNS
    arrow = pa.schema([(key, pa.string()), (EVENT_MICROS, pa.int64()), *columns])
    schema = f"{key} string, {EVENT_MICROS} bigint, " + ", ".join(
        f"{name} {_SPARK_NAMES[kind]}" for name, kind in columns
    )
    categories = main_categories(ingest, spec) if users else {}
    types = spec.event_types
    category = lambda item: categories.get(item, "")  # noqa: E731 - shipped to Spark's workers

    def build(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            keys = zip(*(column.to_pylist() for column in batch.columns), strict=True)
            rows = [
                {key: name[1:], EVENT_MICROS: micros, **row_of(load(facts), types, category)}
                for name, facts, micros in keys
            ]
            yield pa.RecordBatch.from_pylist(rows, arrow)

    facts = spark.read.parquet(str(state)).where(F.col(KEY).startswith(prefix))
    rows = facts.mapInArrow(build, schema)
    stamp = F.timestamp_micros(EVENT_MICROS).alias(c.EVENT_TIMESTAMP)
    return rows.select(key, stamp, *(name for name, _ in columns)).sortWithinPartitions(key)
