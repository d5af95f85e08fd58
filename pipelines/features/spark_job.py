"""The Spark job from ingested events to the offline feature tables that Feast reads.

Every row has the time from which it is known (``event_timestamp``), so that a point-in-time join
gives a training example exactly what could have been served at its time. Daily tables have one
row per key and midnight (UTC) at which something changed; the row of midnight D covers the events
before D. The midnight after the last event is in the future: its row is stamped ``end``, one
second after that event. Days and microseconds are counted from 1970-01-01.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow.dataset import dataset
from pyspark import StorageLevel
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import from_arrow_schema

from feature_repo import columns as c
from feature_repo.aggregates.definition import AggregateView
from feature_repo.cell_values import MAX_NUMBER
from feature_repo.dataset import DatasetSpec
from feature_repo.declarations.declared import Declared
from feature_repo.events.schema import event_schema
from feature_repo.files import write_json
from feature_repo.units import DAY_MICROS, MICROS
from pipelines.features.aggregates import DAY, EVENT_MICROS, Span, aggregate_table
from pipelines.features.profiles import AttributeTables
from pipelines.features.stream_state import POSITION_FILE, STATE, stream_state

_LARGEST_SUM = 2.0**62
"""Sums up to here fit into 64 bits."""


def build_features(
    spark: SparkSession,
    spec: DatasetSpec,
    ingest: Path,
    out: Path,
    *,
    event_files: list[str] | None = None,
    progress: Callable[[str], None] = lambda _message: None,
    log_position: str = "0-0",
    declared: Declared,
) -> dict[str, int]:
    """Write every offline feature table as a folder of Parquet below ``out``.

    Args:
        spark: a session; its Parquet timestamps are set to microseconds.
        spec: the data set, without optional tables that are absent.
        ingest: the folder with ``events/``, ``users.parquet`` and ``items.parquet``, and with
            ``users_history.parquet`` and ``items_history.parquet`` where these have ``valid_from``.
        out: the folder of the tables; a table of the same name is replaced.
        event_files: the event files to read, relative to ``ingest`` or absolute; by default all.
        progress: called with one line for each finished table.
        log_position: the newest entry of the event log among the events.
        declared: the aggregates to compute, built-in ones and those of a ``features.py``.

    Returns:
        The number of rows of each table: the aggregates, ``user_profile`` and ``item_profile``, as
        far as ``spec`` has them, and ``stream_state``.

    Raises:
        ValueError: there are no events.

    """
    spark.conf.set("spark.sql.parquet.outputTimestampType", "TIMESTAMP_MICROS")
    events = read_events(spark, ingest, spec, event_files).persist(StorageLevel.MEMORY_AND_DISK)
    rows = {}
    try:
        span = _span(events)
        described = AttributeTables(spark, spec, ingest)
        items = described.current("items")
        tables: dict[str, Callable[[], DataFrame]] = {}
        for view in declared.aggregates:
            given = _with_categories(events, items, view, spec)
            tables[view.name] = partial(aggregate_table, given, view, span, log_position)
        tables |= _tables(spec, described, events=events, span=span)
        tables[STATE] = lambda: stream_state(events, log_position, declared.streamed)
        for name, build in tables.items():
            started = time.monotonic()
            folder = str(out / name)
            build().write.mode("overwrite").option("compression", "snappy").parquet(folder)
            rows[name] = _row_count(out / name)
            progress(f"{name}: {rows[name]:,} rows in {time.monotonic() - started:.1f} s")
    finally:
        events.unpersist()
    streamed = declared.streamed_version
    write_json(out / POSITION_FILE, {"position": log_position, "declared": streamed})
    return rows


def _row_count(folder: Path) -> int:
    """Return the number of rows of a table, from its files' footers: no Spark job is needed."""
    return sum(pq.read_metadata(file).num_rows for file in folder.glob("*.parquet"))


def _tables(
    spec: DatasetSpec, described: AttributeTables, *, events: DataFrame, span: Span
) -> dict[str, Callable[[], DataFrame]]:
    """Return how to build each table that is not of aggregates."""
    tables: dict[str, Callable[[], DataFrame]] = {}
    if spec.user_attributes:
        tables["user_profile"] = lambda: described.profile("users", events, span)
    if described.types["items"]:
        tables["item_profile"] = lambda: described.profile("items", events, span)
    return tables


def _with_categories(
    events: DataFrame, items: DataFrame, view: AggregateView, spec: DatasetSpec
) -> DataFrame:
    """Return the events with the categories of their items, if a view reads them."""
    if c.ITEM_CATEGORIES not in view.columns or spec.category is None:
        return events
    given = F.col(spec.category)
    many = dict(items.dtypes)[spec.category].startswith("array")
    labels = F.filter(given if many else F.array(given), lambda label: label.isNotNull())
    of_items = items.select(c.ITEM, labels.alias(c.ITEM_CATEGORIES))
    joined = events.drop(c.ITEM_CATEGORIES).join(of_items, c.ITEM, "left")
    none = F.array().cast("array<string>")
    known = F.coalesce(c.ITEM_CATEGORIES, none).alias(c.ITEM_CATEGORIES)
    others = [name for name in joined.columns if name != c.ITEM_CATEGORIES]
    return joined.select(*others, known)


def read_events(
    spark: SparkSession, ingest: Path, spec: DatasetSpec, files: list[str] | None = None
) -> DataFrame:
    """Read the events, those of a user in one partition, with numbers in millionths.

    Integers keep sums exact and independent of their order: the same log gives the same tables.
    Values beyond ``MAX_NUMBER``, which ingest takes no more, count as missing.
    """
    paths = (
        [str(ingest / file) for file in files] if files is not None else [str(ingest / "events")]
    )
    if not paths:
        raise ValueError(f"{ingest}: no event files")
    micros = F.unix_micros(c.TIMESTAMP)
    context = [
        _units(name, "decimal(38,0)") if kind == "numeric" else F.col(name)
        for name, kind in spec.context.items()
    ]
    return (
        spark.read.schema(from_arrow_schema(event_schema(spec.context)))
        .parquet(*paths)
        .select(
            c.EVENT_ID,
            c.USER,
            c.ITEM,
            c.TYPE,
            c.POSITIVE,
            micros.alias(EVENT_MICROS),
            F.floor(micros / DAY_MICROS).alias(DAY),
            _units(c.VALUE, _value_type(paths)),
            F.round(F.col(c.WEIGHT) * MICROS).cast("bigint").alias(c.WEIGHT),
            *context,
        )
        .repartition(c.USER)
    )


def _units(name: str, kind: str) -> Column:
    """Return a column of numbers in millionths; null where it holds none that counts."""
    number = F.when(~F.isnan(name) & (F.abs(name) <= MAX_NUMBER), F.col(name))
    return F.round(number * MICROS).cast(kind).alias(name)


def _value_type(paths: list[str]) -> str:
    """Return the type of values in millionths in which no sum of them overflows."""
    total = 0.0
    for path in paths:
        events = dataset(path, format="parquet")
        if c.VALUE in events.schema.names:
            sizes = pc.abs(events.to_table(columns=[c.VALUE])[c.VALUE])
            counted = sizes.filter(pc.less_equal(sizes, MAX_NUMBER))  # without NaN
            total += pc.sum(counted).as_py() or 0.0
    return "bigint" if total * MICROS < _LARGEST_SUM else "decimal(38,0)"


def _span(events: DataFrame) -> Span:
    first, last = events.agg(F.min(EVENT_MICROS), F.max(EVENT_MICROS)).collect()[0]
    if last is None:
        raise ValueError(
            "no events to compute features from: check the files given to 'funnel ingest'"
        )
    return Span(first // DAY_MICROS, last // DAY_MICROS + 1, last + MICROS)
