"""The point-in-time join as SQL of DuckDB: for each entity row a view's newest row before it.

``ASOF JOIN`` finds it by one sorted merge
(https://duckdb.org/docs/stable/guides/sql_features/asof_join).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlparse

import duckdb
import pyarrow as pa
from feast import FeatureView, StreamFeatureView

from feature_repo.declarations.aggregate_views import computed_as_of, definition_of

ORDER = "__entity_row"
"""The column that numbers entity rows."""

_TRIES = 5


def has_table(view: FeatureView) -> bool:
    """Return whether a view's table is there; that of a view declared no more may be gone."""
    path = Path(view.batch_source.path)
    return path.is_file() or any(path.glob("*.parquet")) or bool(urlparse(str(path)).scheme)


def newest_rows(view: FeatureView, entities: pa.Table, time_column: str) -> pa.Table:
    """Return a view's newest row not after the time of each entity row, in the same order.

    The row may be of any age.

    Args:
        view: the view whose table is read.
        entities: a column of times, and columns that a row must equal, under the view's own names:
            at least its key.
        time_column: name of the column of times (UTC); a null has no row.

    Returns:
        The table's columns, its timestamp among them; all null where there is no such row.

    """
    keys = {name: name for name in entities.column_names if name != time_column}
    numbered = entities.append_column(ORDER, pa.array(range(len(entities))))
    # DuckDB's join would treat a null as the latest of all times.
    time = f"coalesce(e.{quote(time_column)}, TIMESTAMPTZ '-infinity')"
    join = _asof_join("f", view, keys, time)
    return run(f"SELECT f.* FROM entities e {join} ORDER BY e.{ORDER}", numbered)


def run(query: str, entities: pa.Table | None = None) -> pa.Table:
    """Return what a query of Parquet files and ``entities`` gives, in the time zone UTC."""
    tries = 0
    while True:
        with duckdb.connect() as database:
            database.execute("SET TimeZone = 'UTC'")
            # DuckDB guesses that registered rows are few and would loop over them: 161 s instead of
            # 0.6 s for 370,000 rows against 900,000.
            database.execute("SET asof_loop_join_threshold = 0")
            if entities is not None:
                database.register("entities", entities)
            try:
                return database.execute(query).to_arrow_table()
            except duckdb.IOException:  # a running stream has merged its small files: list again
                tries += 1
                if tries == _TRIES:
                    raise


def quote(name: str) -> str:
    """Return a column's name as SQL."""
    return '"' + name.replace('"', '""') + '"'


def keys_of(view: FeatureView) -> dict[str, str]:
    """Return the key columns of a view's table, each with its name in entity rows."""
    columns = {entity.name: entity.name for entity in view.entity_columns}
    return columns | dict(view.projection.join_key_map)


def computed(views: Sequence[FeatureView]) -> list[StreamFeatureView]:
    """Return the views whose values are computed from a state."""
    return [view for view in views if computed_as_of(view)]


def state_column(view: str) -> str:
    """Return the column of joined rows that holds a view's state."""
    return f"__state_of_{view}"


def rows_of(view: FeatureView) -> str:
    """Return the SQL of a view's table."""
    path = view.batch_source.path.replace("'", "''")
    return f"read_parquet('{path if path.endswith('.parquet') else path + '/*.parquet'}')"


def asof_query(
    columns: Sequence[str],
    time_column: str,
    *,
    feature_views: Sequence[FeatureView],
    feature_refs: Sequence[str],
    full_feature_names: bool,
    filter_by_created_timestamp: bool = False,
) -> str:
    """Return the SQL that joins the table ``entities`` with features, in the order of its rows.

    Args:
        columns: the columns of ``entities`` that stay, beside ``ORDER``.
        time_column: the one of them that holds the time of each row.
        feature_views: the views to join.
        feature_refs: the features to select, as ``view:feature``.
        full_feature_names: whether columns are called ``view__feature``.
        filter_by_created_timestamp: pass over rows that were made after an entity row's time.

    """
    selected = [f"e.{quote(name)}" for name in columns]
    joins = []
    time = f"e.{quote(time_column)}"
    for number, view in enumerate(feature_views):
        table = f"f{number}"
        known = f"{table}.{quote(view.batch_source.timestamp_field)}"
        made = filter_by_created_timestamp and view.batch_source.created_timestamp_column
        joins.append((_made_join if made else _asof_join)(table, view, keys_of(view), time))
        prefix = view.projection.name_to_use()
        for reference in feature_refs:
            owner, feature = reference.split(":", 1)
            if owner != prefix:
                continue
            value = f"{table}.{quote(feature)}"
            if view.ttl:
                seconds = int(view.ttl.total_seconds())
                value = f"CASE WHEN {known} >= {time} - to_seconds({seconds}) THEN {value} END"
            name = f"{prefix}__{feature}" if full_feature_names else feature
            selected.append(f"{value} AS {quote(name)}")
        if computed([view]):
            state = f"{table}.{quote(definition_of(view).state_column)}"
            selected.append(f"{state} AS {quote(state_column(view.name))}")
    return f"SELECT {', '.join(selected)} FROM entities e {' '.join(joins)} ORDER BY e.{ORDER}"


def _asof_join(table: str, view: FeatureView, keys: dict[str, str], time: str) -> str:
    """Return the join of entities ``e`` with a view's rows, called ``table``.

    ``keys`` maps the view's key columns to those of the entities; ``time`` is an SQL expression.
    """
    source = view.batch_source
    conditions = [f"{table}.{quote(key)} = e.{quote(column)}" for key, column in keys.items()]
    known = f"{table}.{quote(source.timestamp_field)}"
    conditions.append(f"{time} >= {known}")
    rows = rows_of(view)
    if source.created_timestamp_column:
        # Of rows of one time the one that was made last counts.
        of_one_time = ", ".join(map(quote, [*keys, source.timestamp_field]))
        created = quote(source.created_timestamp_column)
        rows = (
            f"(SELECT * FROM {rows} QUALIFY row_number() OVER "
            f"(PARTITION BY {of_one_time} ORDER BY {created} DESC NULLS LAST) = 1)"
        )
    return f"ASOF LEFT JOIN {rows} {table} ON {' AND '.join(conditions)}"


def _made_join(table: str, view: FeatureView, keys: dict[str, str], time: str) -> str:
    """Return the same join with the rows that were also made by the time of the entity row.

    Two inequalities are no ``ASOF JOIN``, so this takes each entity row with all earlier ones.
    """
    known = f"r.{quote(view.batch_source.timestamp_field)}"
    created = f"r.{quote(view.batch_source.created_timestamp_column)}"
    conditions = [f"r.{quote(key)} = e.{quote(column)}" for key, column in keys.items()]
    conditions += [f"{time} >= {known}", f"{time} >= {created}"]
    newest = (
        f"SELECT e.{ORDER}, r.* FROM entities e JOIN {rows_of(view)} r "
        f"ON {' AND '.join(conditions)} QUALIFY row_number() OVER "
        f"(PARTITION BY e.{ORDER} ORDER BY {known} DESC, {created} DESC) = 1"
    )
    return f"LEFT JOIN ({newest}) {table} ON {table}.{ORDER} = e.{ORDER}"
