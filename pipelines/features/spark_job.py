"""The Spark job from ingested events to the offline feature tables that Feast reads.

Every row has the time from which it is known (``event_timestamp``), so that a point-in-time join
gives a training example exactly what could have been served at its time. Daily tables have one
row per key and midnight (UTC) at which something changed; the row of midnight D covers the events
before D. The midnight after the last event is in the future: its row is stamped ``end``, one
second after that event. Days and microseconds are counted from 1970-01-01.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyspark import StorageLevel
from pyspark.sql import DataFrame, SparkSession, Window
from pyspark.sql import functions as F

from feature_repo import columns as c
from feature_repo.dataset import AttributeKind, DatasetSpec
from feature_repo.files import write_json
from pipelines.features.activity import (
    DAY,
    DAY_MICROS,
    EVENT_MICROS,
    MICROS,
    Span,
    item_activity,
    stamped,
    user_activity,
    with_heartbeats,
)
from pipelines.features.stream_facts import POSITION_FILE, STATE, recent_rows, stream_state

AFFINITY_LENGTH = 20
SEEN_LENGTH = 2_000

_UNITS = "_units"
_STAMP = "_stamp"
_KIND = "_kind"
_LABEL = "_label"

_EVENT_SCHEMA = (
    f"{c.EVENT_ID} string, {c.USER} string, {c.ITEM} string, {c.TIMESTAMP} timestamp, "
    f"{c.TYPE} string, {c.VALUE} double, {c.WEIGHT} double, {c.POSITIVE} boolean"
)
_SPARK_TYPES: dict[AttributeKind, str] = {
    "categorical": "string",
    "multi_categorical": "array<string>",
    "numeric": "double",
    "text": "string",
}


def build_features(
    spark: SparkSession,
    spec: DatasetSpec,
    ingest: Path,
    out: Path,
    *,
    event_files: list[str] | None = None,
    progress: Callable[[str], None] = lambda _message: None,
    log_position: str = "0-0",
) -> dict[str, int]:
    """Write every offline feature table as a folder of Parquet below ``out``.

    Args:
        spark: a session; its Parquet timestamps are set to microseconds.
        spec: the data set, without optional tables that are absent.
        ingest: the folder with ``events/``, ``users.parquet`` and ``items.parquet``.
        out: the folder of the tables; a table of the same name is replaced.
        event_files: the event files to read, relative to ``ingest`` or absolute; by default all.
        progress: called with one line for each finished table.
        log_position: the newest entry of the event log among the events.

    Returns:
        The number of rows of each table: ``user_activity``, ``item_activity``, ``user_affinity``,
        ``user_history``, ``user_seen``, ``user_profile``, ``item_profile``, as far as ``spec`` has
        them, ``stream_state``, ``user_recent`` and ``item_recent``.

    Raises:
        ValueError: there are no events.

    """
    spark.conf.set("spark.sql.parquet.outputTimestampType", "TIMESTAMP_MICROS")
    events = read_events(spark, ingest, event_files).persist(StorageLevel.MEMORY_AND_DISK)
    rows = {}
    try:
        span = _span(events)
        tables = _tables(spark, spec, ingest, events=events, span=span)
        tables[STATE] = lambda: stream_state(events, spec, log_position)
        tables["user_recent"] = lambda: recent_rows(spark, out / STATE, spec, ingest, users=True)
        tables["item_recent"] = lambda: recent_rows(spark, out / STATE, spec, ingest, users=False)
        for name, build in tables.items():
            started = time.monotonic()
            folder = str(out / name)
            build().write.mode("overwrite").option("compression", "snappy").parquet(folder)
            rows[name] = spark.read.parquet(folder).count()
            progress(f"{name}: {rows[name]:,} rows in {time.monotonic() - started:.1f} s")
    finally:
        events.unpersist()
    write_json(out / POSITION_FILE, {"position": log_position})
    return rows


def _tables(
    spark: SparkSession, spec: DatasetSpec, ingest: Path, *, events: DataFrame, span: Span
) -> dict[str, Callable[[], DataFrame]]:
    """Return how to build each table that the spec calls for."""
    tables: dict[str, Callable[[], DataFrame]] = {
        "user_activity": lambda: user_activity(events, spec, span),
        "item_activity": lambda: item_activity(events, spec, span),
        "user_history": lambda: user_history(events),
        "user_seen": lambda: user_seen(events, spec, span),
    }
    users = spec.user_attributes
    items = {name: _SPARK_TYPES[kind] for name, kind in spec.item_attributes.items()}
    if spec.items and spec.items.available_from:
        items[c.AVAILABLE_FROM] = "timestamp"
    if spec.items and spec.items.available_until:
        items[c.AVAILABLE_UNTIL] = "timestamp"
    item_table = _attributes(spark, ingest / "items.parquet", c.ITEM, items)
    if spec.category:
        category = spec.category
        tables["user_affinity"] = lambda: user_affinity(events, item_table, category, span)
    if users:
        types = {name: _SPARK_TYPES[kind] for name, kind in users.items()}
        user_table = _attributes(spark, ingest / "users.parquet", c.USER, types)
        tables["user_profile"] = lambda: profile(events, user_table, c.USER, span)
    if items:
        tables["item_profile"] = lambda: profile(events, item_table, c.ITEM, span)
    return tables


def read_events(spark: SparkSession, ingest: Path, files: list[str] | None = None) -> DataFrame:
    """Read the events, those of a user in one partition, with value and weight in millionths.

    Integers keep sums exact and independent of their order: the same log gives the same tables.
    """
    paths = (
        [str(ingest / file) for file in files] if files is not None else [str(ingest / "events")]
    )
    if not paths:
        raise ValueError(f"{ingest}: no event files")
    micros = F.unix_micros(c.TIMESTAMP)
    value = F.when(~F.isnan(c.VALUE), F.col(c.VALUE))
    return (
        spark.read.schema(_EVENT_SCHEMA)
        .parquet(*paths)
        .select(
            c.EVENT_ID,
            c.USER,
            c.ITEM,
            c.TYPE,
            c.POSITIVE,
            micros.alias(EVENT_MICROS),
            F.floor(micros / DAY_MICROS).alias(DAY),
            F.round(value * MICROS).cast("bigint").alias(c.VALUE),
            F.round(F.col(c.WEIGHT) * MICROS).cast("bigint").alias(c.WEIGHT),
        )
        .repartition(c.USER)
    )


def _span(events: DataFrame) -> Span:
    first, last = events.agg(F.min(EVENT_MICROS), F.max(EVENT_MICROS)).collect()[0]
    if last is None:
        raise ValueError(
            "no events to compute features from: check the files given to 'funnel ingest'"
        )
    return Span(first // DAY_MICROS, last // DAY_MICROS + 1, last + MICROS)


def _attributes(spark: SparkSession, file: Path, key: str, types: dict[str, str]) -> DataFrame:
    """Read a user or item table with columns ``key`` and ``types``, empty without a file."""
    schema = ", ".join([f"{key} string", *(f"{name} {kind}" for name, kind in types.items())])
    return (
        spark.read.schema(schema).parquet(str(file))
        if file.exists()
        else spark.createDataFrame([], schema)
    )


def user_affinity(events: DataFrame, items: DataFrame, category: str, span: Span) -> DataFrame:
    """Return each user's categories and their shares of weight, largest first.

    Columns array<string> and array<float>. A positive event gives its weight to each category of
    its item. At most ``AFFINITY_LENGTH`` categories are stored; the shares are of all.
    """
    many = dict(items.dtypes)[category].startswith("array")
    labels = F.array_distinct(category) if many else F.array(category)
    labels = F.filter(labels, lambda label: label.isNotNull())
    # An item without a category has the category "", so that its user's days keep their rows.
    labels = F.when(F.size(labels) > 0, labels).otherwise(F.array(F.lit(""))).alias(_LABEL)
    liked = (
        events.where(c.POSITIVE)
        .groupBy(c.USER, c.ITEM, (F.col(DAY) + 1).alias(DAY))
        .agg(F.sum(c.WEIGHT))
    )
    liked = liked.toDF(c.USER, c.ITEM, DAY, c.WEIGHT).join(
        items.select(c.ITEM, labels), c.ITEM, "left"
    )
    label = F.explode(F.coalesce(_LABEL, F.array(F.lit("")))).alias(_LABEL)
    gains = liked.select(c.USER, label, DAY, c.WEIGHT)
    weight = F.sum(c.WEIGHT).over(Window.partitionBy(c.USER, _LABEL).orderBy(DAY))
    counted = (F.col(_LABEL) != "") & (F.col(c.WEIGHT) > 0)
    totals = (
        _every_day(gains, span)
        .withColumn(c.WEIGHT, weight)
        .groupBy(c.USER, DAY)
        .agg(
            F.sum(F.when(counted, F.col(c.WEIGHT))).alias(_UNITS),
            # Sorted by the negative weight first, then by name.
            F.sort_array(F.collect_list(F.when(counted, F.struct(-F.col(c.WEIGHT), _LABEL)))).alias(
                _LABEL
            ),
        )
        .withColumn(_LABEL, F.slice(_LABEL, 1, AFFINITY_LENGTH))
    )
    shares = totals.select(
        c.USER,
        DAY,
        F.transform(_LABEL, lambda entry: entry[_LABEL]).alias(c.CATEGORIES),
        F.transform(_LABEL, lambda entry: (-entry["col1"] / F.col(_UNITS)).cast("float")).alias(
            c.CATEGORY_SHARES
        ),
    )
    return stamped(with_heartbeats(shares, c.USER), c.USER, span)


def _every_day(gains: DataFrame, span: Span) -> DataFrame:
    """Sum a user's weights by label and day, with a row for each label on each day."""
    by_user = gains.groupBy(c.USER).agg(
        F.collect_set(_LABEL).alias(_LABEL),
        F.array_union(F.collect_set(DAY), F.array(F.lit(span.last_midnight).cast("bigint"))).alias(
            DAY
        ),
        F.collect_list(F.struct(_LABEL, DAY, c.WEIGHT)).alias(_UNITS),
    )
    zero = F.lit(0).cast("bigint").alias(c.WEIGHT)
    grid = F.transform(
        _LABEL,
        lambda label: F.transform(
            DAY, lambda day: F.struct(label.alias(_LABEL), day.alias(DAY), zero)
        ),
    )
    cells = by_user.select(c.USER, F.inline(F.concat(_UNITS, F.flatten(grid))))
    return cells.groupBy(c.USER, _LABEL, DAY).agg(F.sum(c.WEIGHT).alias(c.WEIGHT))


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


def user_seen(events: DataFrame, spec: DatasetSpec, span: Span) -> DataFrame:
    """Return, for each midnight after a day with events, a user's items by event type.

    Lists (array<string>, empty where there are none) are distinct, latest last, at most
    ``SEEN_LENGTH`` long.
    """
    kinds = spec.event_types
    kind = F.array_position(F.array(*map(F.lit, kinds)), F.col(c.TYPE)) - 1
    known = events.where(F.col(c.TYPE).isin(kinds)).withColumns(
        {_STAMP: span.stamp_micros(F.col(DAY) + 1), _KIND: kind}
    )
    lists = _recent(known, SEEN_LENGTH, len(kinds))
    stamp = F.timestamp_micros(_STAMP).alias(c.EVENT_TIMESTAMP)
    return lists.select(
        c.USER, stamp, *(F.col(f"items_{i}").alias(c.seen(kind)) for i, kind in enumerate(kinds))
    )


def _recent(events: DataFrame, length: int, lists: int) -> DataFrame:
    """Fold each user's events, in order, into lists of recent items; one row per ``_STAMP``."""
    schema = [f"{c.USER} string", f"{_STAMP} bigint"]
    schema += [f"items_{i} array<string>, times_{i} array<bigint>" for i in range(lists)]
    ordered = events.sortWithinPartitions(c.USER, EVENT_MICROS, c.EVENT_ID)
    rows = ordered.select(
        c.USER, _STAMP, _KIND, c.ITEM, F.floor(F.col(EVENT_MICROS) / MICROS).alias(EVENT_MICROS)
    )
    return rows.mapInArrow(_recent_lists(length, lists), ", ".join(schema))


def _recent_lists(
    length: int, lists: int
) -> Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """Return the fold of ``_recent``, a closure: Spark ships it to workers without this package."""
    types = [pa.string(), pa.int64(), *[pa.list_(pa.string()), pa.list_(pa.int64())] * lists]
    batch_size = 500_000

    def snapshots(
        batches: Iterable[pa.RecordBatch],
    ) -> Iterator[tuple[str, int, list[dict[str, int]]]]:
        rows = (
            row
            for batch in batches
            for row in zip(*(column.to_pylist() for column in batch.columns), strict=True)
        )
        for user, events in groupby(rows, key=itemgetter(0)):
            recent: list[dict[str, int]] = [{} for _ in range(lists)]
            for stamp, simultaneous in groupby(events, key=itemgetter(1)):
                for _, _, kind, item, seconds in simultaneous:
                    latest = recent[kind]
                    latest.pop(item, None)  # so that it goes to the end
                    latest[item] = seconds
                    if len(latest) > length:
                        del latest[next(iter(latest))]
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


def profile(events: DataFrame, table: DataFrame, key: str, span: Span) -> DataFrame:
    """Return the attributes of every user or item, known since the day before the first event.

    Keys that occur only in events have null attributes.
    """
    values = [
        F.when(~F.isnan(name), F.col(name)).alias(name) if kind == "double" else F.col(name)
        for name, kind in table.dtypes
        if name != key
    ]
    stamp = F.timestamp_micros(F.lit((span.first_day - 1) * DAY_MICROS)).alias(c.EVENT_TIMESTAMP)
    known = events.select(key).distinct().join(table, key, "full")
    return known.select(key, stamp, *values).sortWithinPartitions(key)
