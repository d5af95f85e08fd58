"""The rows that a historical read joins features with: a data frame, SQL, or a period of time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Self

import duckdb
import pandas as pd
import pyarrow as pa
from feast import FeatureView
from feast.errors import FeastEntityDFMissingColumnsError
from feast.infra.offline_stores.offline_utils import (
    DEFAULT_ENTITY_DF_EVENT_TIMESTAMP_COL,
    infer_event_timestamp_from_entity_df,
)
from feast.utils import compute_non_entity_date_range

from feature_repo.stores.asof_join import ORDER, keys_of, quote, rows_of, run


@dataclass(frozen=True)
class EntityRows:
    """Entity rows, numbered by the column ``ORDER``.

    Attributes:
        table: the rows; their times are microseconds UTC.
        time_column: the column of the time of each row.
        query: the SQL that gives them; None: a data frame did.

    """

    table: pa.Table
    time_column: str
    query: str | None = None

    @property
    def columns(self) -> list[str]:
        """Their columns, without the number."""
        return [name for name in self.table.column_names if name != ORDER]

    @classmethod
    def of_frame(cls, frame: pd.DataFrame) -> Self:
        """Return the rows of a data frame.

        Raises:
            ValueError: it has no time column, or one that holds no times.

        """
        time_column = infer_event_timestamp_from_entity_df(dict(frame.dtypes))
        entities = frame.copy()
        times = pd.to_datetime(entities[time_column], utc=True)
        entities[time_column] = times.astype("datetime64[us, UTC]")
        entities[ORDER] = range(len(entities))
        return cls(pa.Table.from_pandas(entities, preserve_index=False), time_column)

    @classmethod
    def of_sql(cls, text: str) -> Self:
        """Return the rows of a query that DuckDB runs, in the time zone UTC.

        Raises:
            ValueError: DuckDB cannot run it, or it gives no time column.

        """
        rows = f"(\n{text.strip().rstrip(';')}\n)"
        try:
            types = dict(run(f"SELECT * FROM {rows} LIMIT 0").to_pandas().dtypes)
            time_column = infer_event_timestamp_from_entity_df(types)
            time = quote(time_column)
            query = (
                f"SELECT * REPLACE (CAST({time} AS TIMESTAMPTZ) AS {time}), "
                f"row_number() OVER () - 1 AS {ORDER} FROM {rows}"
            )
            return cls(run(query), time_column, query)
        except duckdb.Error as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"entity_df is text that DuckDB cannot run as SQL: {reason}") from None

    @classmethod
    def of_period(
        cls, views: Sequence[FeatureView], start: datetime | None, end: datetime | None
    ) -> Self:
        """Return a row, as of the end, for each key that has a row of a view within a period.

        These are the rows that Feast's Spark and BigQuery stores give for a read without entities.
        A row has the keys of one view; of users and items together the others are missing.

        Args:
            views: the views that are read.
            start: beginning of the period; None: the longest TTL before its end.
            end: end of the period; None: now.

        Raises:
            ValueError: the period ends before it begins.

        """
        start, end = compute_non_entity_date_range(list(views), start_date=start, end_date=end)
        if start > end:
            raise ValueError(f"start_date {start} is after end_date {end}")
        names = list(dict.fromkeys(name for view in views for name in keys_of(view).values()))
        selects = " UNION ".join(_keys_within(view, names, start, end) for view in views)
        time_column = DEFAULT_ENTITY_DF_EVENT_TIMESTAMP_COL
        query = (
            f"SELECT *, {_literal(end)} AS {time_column}, "
            f"row_number() OVER (ORDER BY {', '.join(map(quote, names))}) - 1 AS {ORDER} "
            f"FROM ({selects}) ORDER BY {ORDER}"
        )
        return cls(run(query), time_column, query)

    def check(self, views: Sequence[FeatureView]) -> None:
        """Check that the rows have the keys of the views that are joined with them.

        Raises:
            FeastEntityDFMissingColumnsError: they lack one.
            ValueError: a key is not text.

        """
        names = {name for view in views for name in keys_of(view).values()}
        missing = names - set(self.columns)
        if missing:
            raise FeastEntityDFMissingColumnsError(names | {self.time_column}, missing)
        for name in sorted(names):
            kind = self.table.schema.field(name).type
            if pa.types.is_primitive(kind):
                raise ValueError(f"column '{name}' of the entity rows is {kind}; ids are text")


def _keys_within(view: FeatureView, names: Sequence[str], start: datetime, end: datetime) -> str:
    """Return the SQL of the keys of a view's rows within a period; ``names``: all key columns."""
    columns = {name: key for key, name in keys_of(view).items()}
    selected = [
        f"CAST({quote(columns[name]) if name in columns else 'NULL'} AS VARCHAR) AS {quote(name)}"
        for name in names
    ]
    time = quote(view.batch_source.timestamp_field)
    return (
        f"SELECT DISTINCT {', '.join(selected)} FROM {rows_of(view)} "
        f"WHERE {time} BETWEEN {_literal(start)} AND {_literal(end)}"
    )


def _literal(time: datetime) -> str:
    return f"TIMESTAMPTZ '{time.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}+00'"
