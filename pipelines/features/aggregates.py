"""Tables of declared aggregates: the values that each user or item had, from when to when.

The values come from ``feature_repo/aggregates``; Spark's workers need this package.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import from_arrow_schema

from feature_repo import columns as c
from feature_repo.aggregates.definition import AggregateView, Occurrence
from feature_repo.aggregates.state import AggregateState
from pipelines.features.activity import EVENT_MICROS
from pipelines.features.aggregate_history import Occurrences, history

_ROWS_PER_CALL = 50_000


def arrow_schema(view: AggregateView) -> pa.Schema:
    """Return the columns of a view's table."""
    features = [(a.name, pa.int64() if a.is_integer else pa.float64()) for a in view.aggregates]
    stamp = (c.EVENT_TIMESTAMP, pa.timestamp("us", tz="UTC"))
    return pa.schema([(view.key, pa.string()), stamp, *features, (view.state_column, pa.string())])


def aggregate_table(events: DataFrame, view: AggregateView, position: str) -> DataFrame:
    """Return a row of every moment at which a value changes, stamped with that moment.

    Rows from a key's last counted event on have the state, from which a stream or a read goes on.

    Args:
        events: as ``read_events`` returns them.
        view: what to compute.
        position: the newest entry of the event log among the events.

    """
    rows = (
        events.select(
            F.col(view.key),
            F.col(EVENT_MICROS),
            F.col(c.EVENT_ID),
            F.col(c.TYPE),
            F.col(c.VALUE).cast("decimal(38,0)").alias(c.VALUE),
        )
        .repartition(view.key)
        .sortWithinPartitions(view.key, EVENT_MICROS, c.EVENT_ID)
    )
    return rows.mapInArrow(_histories(view, position), from_arrow_schema(arrow_schema(view)))


def _histories(
    view: AggregateView, position: str
) -> Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    def histories(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for events in _whole_keys(batches):
            yield from _history_of(view, events, position).to_batches()

    return histories


def _whole_keys(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Yield sorted rows in tables of many keys, each key whole in one of them."""
    waiting: list[pa.Table] = []
    for batch in batches:
        waiting.append(pa.Table.from_batches([batch]))
        if sum(map(len, waiting)) < _ROWS_PER_CALL:
            continue
        table = pa.concat_tables(waiting)
        keys = table.column(0)
        last = keys[len(keys) - 1]
        whole = pc.index(keys, last).as_py()
        if whole:
            yield table.slice(0, whole)
        waiting = [table.slice(whole)]
    if waiting:
        yield pa.concat_tables(waiting)


def _history_of(view: AggregateView, events: pa.Table, position: str) -> pa.Table:
    """Return the rows of some keys, from all events of these keys."""
    schema = arrow_schema(view)
    if not len(events):
        return schema.empty_table()
    dictionary = events.column(0).combine_chunks().dictionary_encode()
    key = dictionary.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    names = dictionary.dictionary
    units = [None if value is None else int(value) for value in events[c.VALUE].to_pylist()]
    occurrences = Occurrences(
        key=key,
        micros=events[EVENT_MICROS].to_numpy(),
        type=events[c.TYPE].to_numpy(zero_copy_only=False),
        units=np.array([unit or 0 for unit in units], dtype=object),
        has_value=np.array([unit is not None for unit in units], dtype=np.bool_),
    )
    rows = history(view, occurrences)

    # The state of each key is the same from its last counted event on.
    ids = events[c.EVENT_ID].to_pylist()
    states, last = [], []
    edges = np.flatnonzero(np.diff(key)) + 1
    for start, stop in zip([0, *edges], [*edges, len(key)], strict=True):
        of_key = [
            Occurrence(int(occurrences.micros[n]), ids[n], occurrences.type[n], units[n])
            for n in range(start, stop)
        ]
        counted = [event for event in of_key if any(a.counts(event) for a in view.aggregates)]
        state = AggregateState(view, position=position)
        state.add(counted)
        states.append(state.dump())
        last.append(counted[-1].micros if counted else 0)
    has_state = rows.micros >= np.array(last)[rows.key]

    columns = [names.take(pa.array(rows.key)), pa.array(rows.micros, pa.timestamp("us", tz="UTC"))]
    for aggregate in view.aggregates:
        values = rows.values[aggregate.name]
        kind = schema.field(aggregate.name).type
        columns.append(pa.array(values, pa.float64(), mask=np.isnan(values)).cast(kind))
    columns.append(
        pa.array(
            [states[of] if has else None for of, has in zip(rows.key, has_state, strict=True)],
            pa.string(),
        )
    )
    return pa.Table.from_arrays(columns, schema=schema)
