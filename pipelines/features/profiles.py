"""The profile tables: attributes of users and items, and from when they are known."""

from __future__ import annotations

from pathlib import Path

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import from_arrow_type

from feature_repo import columns as c
from feature_repo.attribute_types import ATTRIBUTE_TYPES
from feature_repo.dataset import DatasetSpec, Users
from feature_repo.units import DAY_MICROS
from pipelines.features.aggregates import Span

SPARK_TYPES = {
    kind: from_arrow_type(arrow).simpleString() for kind, arrow in ATTRIBUTE_TYPES.items()
}
_KEYS = {"users": c.USER, "items": c.ITEM}
_TEN_YEARS = 3_653
"""Days before the first event: no row is stamped earlier, so that none is past its TTL."""


class AttributeTables:
    """The tables of users and items that ingest left.

    Attributes:
        types: of each table's columns, in Spark's words.

    """

    def __init__(self, spark: SparkSession, spec: DatasetSpec, ingest: Path) -> None:
        self._spark = spark
        self._ingest = ingest
        self._spec: dict[str, Users | None] = {"users": spec.users, "items": spec.items}
        self.types: dict[str, dict[str, str]] = {
            "users": {name: SPARK_TYPES[kind] for name, kind in spec.user_attributes.items()},
            "items": {name: SPARK_TYPES[kind] for name, kind in spec.item_attributes.items()},
        }
        if spec.items and spec.items.available_from:
            self.types["items"][c.AVAILABLE_FROM] = "timestamp"
        if spec.items and spec.items.available_until:
            self.types["items"][c.AVAILABLE_UNTIL] = "timestamp"

    def current(self, kind: str) -> DataFrame:
        """Return the attributes of ``users`` or ``items``, one row each."""
        return self._read(kind, kind, {})

    def profile(self, kind: str, events: DataFrame, span: Span) -> DataFrame:
        """Return the profiles of ``users`` or ``items``, of the history if their table has one."""
        table = self._spec[kind]
        if table is None or table.valid_from is None:
            return profile(events, self.current(kind), _KEYS[kind], span)
        history = self._read(kind, f"{kind}_history", {c.VALID_FROM: "timestamp"})
        return dated_profile(events, history, _KEYS[kind], span)

    def _read(self, kind: str, file: str, further: dict[str, str]) -> DataFrame:
        """Read a table's columns and ``further`` ones, empty without a file."""
        path = self._ingest / f"{file}.parquet"
        types = self.types[kind] | further
        columns = [f"{name} {type_}" for name, type_ in types.items()]
        schema = ", ".join([f"{_KEYS[kind]} string", *columns])
        return (
            self._spark.read.schema(schema).parquet(str(path))
            if path.exists()
            else self._spark.createDataFrame([], schema)
        )


def profile(events: DataFrame, table: DataFrame, key: str, span: Span) -> DataFrame:
    """Return the attributes of every user or item, known since the day before the first event.

    Keys that occur only in events have null attributes.
    """
    values = [_without_nan(table, name) for name in table.columns if name != key]
    stamp = _midnight(span.first_day - 1).alias(c.EVENT_TIMESTAMP)
    known = events.select(key).distinct().join(table, key, "full")
    return known.select(key, stamp, *values).sortWithinPartitions(key)


def dated_profile(events: DataFrame, history: DataFrame, key: str, span: Span) -> DataFrame:
    """Return a row of attributes for each row of a history, known from its ``valid_from`` on.

    Before its first row a key has no attributes. Keys that occur only in events have a row of null
    attributes. Of rows that are all older than ten years before the first event the newest counts.
    """
    names = [name for name in history.columns if name not in (key, c.VALID_FROM)]
    values = [_without_nan(history, name) for name in names]
    earliest = _midnight(span.first_day - 1 - _TEN_YEARS)
    stamp = F.greatest(c.VALID_FROM, earliest).alias(c.EVENT_TIMESTAMP)
    rows = (
        history.groupBy(key, stamp)
        .agg(F.max_by(F.struct(*values), c.VALID_FROM).alias("row"))
        .select(key, c.EVENT_TIMESTAMP, *(F.col("row")[name].alias(name) for name in names))
    )
    types = dict(history.dtypes)
    nothing = [F.lit(None).cast(types[name]).alias(name) for name in names]
    unknown = events.select(key).distinct().join(history, key, "left_anti")
    unknown = unknown.select(key, earliest.alias(c.EVENT_TIMESTAMP), *nothing)
    return rows.unionByName(unknown).sortWithinPartitions(key, c.EVENT_TIMESTAMP)


def _midnight(day: int) -> F.Column:
    return F.timestamp_micros(F.lit(day * DAY_MICROS))


def _without_nan(table: DataFrame, name: str) -> F.Column:
    """Return a column whose missing numbers are null."""
    if dict(table.dtypes)[name] != "double":
        return F.col(name)
    return F.when(~F.isnan(name), F.col(name)).alias(name)
