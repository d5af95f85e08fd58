"""Tables of aggregates: the values that each user or item had, from when to when.

The values come from ``feature_repo/aggregates``; Spark's workers need this package.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame
from pyspark.sql.pandas.types import from_arrow_schema

from feature_repo import columns as c
from feature_repo.aggregates.definition import AggregateView, Occurrence
from feature_repo.aggregates.state import AggregateState
from feature_repo.arrays import Int64Array
from feature_repo.units import DAY_MICROS
from pipelines.features.aggregate_history import ARROW, Days, history
from pipelines.features.occurrences import Column, Occurrences

DAY = "_day"
"""Column of an event's day, since the epoch."""

EVENT_MICROS = "_moment"
"""Column of an event's time in microseconds since the epoch."""

_ROWS_PER_CALL = 20_000
_COMPUTED = {c.EVENT_ID, c.TYPE, c.TIMESTAMP, c.DAY}
_STAMP = pa.timestamp("us", tz="UTC")


@dataclass(frozen=True)
class Span:
    """The time that the events cover: first day, last midnight, and time of the final snapshot."""

    first_day: int
    last_midnight: int
    end: int


def arrow_schema(view: AggregateView) -> pa.Schema:
    """Return the columns of a view's table."""
    features = [(one.name, ARROW[one.kind]) for one in view.aggregates]
    state = [] if view.daily else [(view.state_column, pa.string())]
    return pa.schema([(view.key, pa.string()), (c.EVENT_TIMESTAMP, _STAMP), *features, *state])


def aggregate_table(
    events: DataFrame, view: AggregateView, span: Span, position: str = "0-0"
) -> DataFrame:
    """Return a row of every moment up to the end at which a value changes, stamped with it.

    Rows from a key's last counted event on have the state, from which a stream or a read goes on.
    Daily aggregates have rows of midnights and no state; the row of the midnight after the last
    event, which is in the future, is stamped with the end of the span.

    Args:
        events: as ``read_events`` returns them, with the columns that the view reads.
        view: what to compute.
        span: the time that the events cover.
        position: the newest entry of the event log among the events.

    """
    others = sorted(view.columns - _COMPUTED - {view.key})
    rows = events.select(view.key, EVENT_MICROS, c.EVENT_ID, c.TYPE, c.WEIGHT, *others)
    if (
        view.key != c.USER or c.ITEM_CATEGORIES in others
    ):  # the events of a user are in one partition already
        rows = rows.repartition(view.key)
    rows = rows.sortWithinPartitions(view.key, EVENT_MICROS, c.EVENT_ID)
    return rows.mapInArrow(_tables(view, span, position), from_arrow_schema(arrow_schema(view)))


def _tables(
    view: AggregateView, span: Span, position: str
) -> Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    def tables(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for events in _whole_keys(batches):
            yield from _Part(view, span, position, events).table().to_batches()

    return tables


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
    if sum(map(len, waiting)):
        yield pa.concat_tables(waiting)


@dataclass(frozen=True)
class _Part:
    """The table of some keys, from all events of these keys, by key, time and id."""

    view: AggregateView
    span: Span
    position: str
    events: pa.Table

    def table(self) -> pa.Table:
        """Return the rows, in the order of keys and times."""
        days = None
        if self.view.daily:
            ttl = self.view.ttl_days
            days = Days(self.span.last_midnight, None if ttl is None else _heartbeat(ttl))
        # What later moments have follows from the state; a row of then would hide that of a stream.
        until = None if days else self.span.end
        rows = history(self.view, self.occurrences, days, until)
        stamps = rows.micros
        if days:
            at_end = stamps == self.span.last_midnight * DAY_MICROS
            stamps = np.where(at_end, self.span.end, stamps)
        columns = [self._keys.dictionary.take(pa.array(rows.key)), pa.array(stamps, _STAMP)]
        columns += [rows.values[one.name] for one in self.view.aggregates]
        if not days:
            columns.append(self._states(rows.key, rows.micros))
        return pa.Table.from_arrays(columns, schema=arrow_schema(self.view))

    @cached_property
    def _keys(self) -> pa.DictionaryArray:
        return self.events.column(0).combine_chunks().dictionary_encode()

    @cached_property
    def occurrences(self) -> Occurrences:
        """The events as arrays."""
        names = (self.view.columns - _COMPUTED) & set(self.events.column_names)
        return Occurrences(
            key=self._keys.indices.to_numpy(zero_copy_only=False).astype(np.int64),
            micros=self.events[EVENT_MICROS].to_numpy(),
            type=self.events[c.TYPE].to_numpy(zero_copy_only=False),
            weight=self.events[c.WEIGHT].to_numpy(),
            columns={name: _column(self.events[name]) for name in names},
        )

    def _states(self, key: Int64Array, micros: Int64Array) -> pa.Array:
        """Return each row's state: the same from a key's last counted event on, before it none."""
        view, events = self.view, self.occurrences
        counted = np.zeros(len(events), dtype=np.bool_)
        for kept in view.kept[0]:
            counted[events.rows_of(kept)] = True
        rows = np.flatnonzero(counted)
        happened = occurrences_of(self.events.take(pa.array(rows)))
        of_key = zip(events.key[rows].tolist(), events.micros[rows].tolist(), happened, strict=True)
        states = {}
        for owner, group in groupby(of_key, key=itemgetter(0)):
            listed = list(group)
            state = AggregateState(view, position=self.position)
            state.add(event for _, _, event in listed)
            states[owner] = (listed[-1][1], state.dump())
        pairs = zip(key.tolist(), micros.tolist(), strict=True)
        return pa.array(
            [states[owner][1] if at >= states[owner][0] else None for owner, at in pairs],
            pa.string(),
        )


def occurrences_of(events: pa.Table | pa.RecordBatch) -> Iterator[Occurrence]:
    """Yield rows of events as aggregates see them, in their order."""
    names = [name for name in events.column_names if name not in (EVENT_MICROS, c.WEIGHT, DAY)]
    values = [_plain(events.column(name)) for name in names]
    moments, weights = (events.column(name).to_pylist() for name in (EVENT_MICROS, c.WEIGHT))
    ids, types = (events.column(name).to_pylist() for name in (c.EVENT_ID, c.TYPE))
    for micros, weight, event_id, type_, *row in zip(
        moments, weights, ids, types, *values, strict=True
    ):
        columns = dict(zip(names, row, strict=True))
        columns |= {c.TIMESTAMP: micros, c.DAY: micros // DAY_MICROS}
        yield Occurrence(micros, event_id, type_, columns, weight)


def _plain(column: pa.ChunkedArray | pa.Array) -> list[Any]:
    values = column.to_pylist()
    if pa.types.is_decimal(column.type):
        return [None if value is None else int(value) for value in values]
    return values


def _heartbeat(ttl_days: int) -> int:
    """Return after how many days a row is repeated, so that its age never exceeds the TTL."""
    return max(1, ttl_days - 6)


def _column(values: pa.ChunkedArray) -> Column:
    known = values.is_valid().to_numpy(zero_copy_only=False)
    if pa.types.is_int64(values.type):
        return Column(pc.fill_null(values, 0).to_numpy(), known)
    if pa.types.is_decimal(values.type):
        return Column.of(_plain(values))
    column = np.empty(len(values), dtype=object)
    column[:] = values.to_pylist()
    return Column(column, known)
