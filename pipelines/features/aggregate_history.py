"""All values that aggregates ever had: one row for each moment at which a key's row changes.

A window's value changes when an event enters it and when the event's pane leaves it, so the rows
number at most the events times one more than the windows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from feature_repo.aggregates.definition import MICROS, Aggregate, AggregateView
from feature_repo.arrays import BoolArray, Float64Array, Int64Array

_LARGEST_SUM = 2**62


@dataclass(frozen=True)
class Occurrences:
    """``n`` events of some keys, by key, then time, then event id.

    Attributes:
        key: number of each event's key, int64 ``[n]``, ascending.
        micros: event times, microseconds since the epoch, int64 ``[n]``.
        type: event types ``[n]``.
        units: values in millionths, object ``[n]`` of ints or int64; 0 where there is none.
        has_value: whether there is a value, bool ``[n]``.

    """

    key: Int64Array
    micros: Int64Array
    type: npt.NDArray[np.object_]
    units: npt.NDArray[np.int64] | npt.NDArray[np.object_]
    has_value: BoolArray

    def __len__(self) -> int:
        return len(self.key)

    def where(self, rows: BoolArray) -> Occurrences:
        """Return the events of which ``rows``, bool ``[n]``, is true."""
        return Occurrences(
            self.key[rows],
            self.micros[rows],
            self.type[rows],
            self.units[rows],
            self.has_value[rows],
        )


@dataclass(frozen=True)
class History:
    """``m`` rows by key and time: ``key`` and ``micros`` int64 ``[m]``, and each feature ``[m]``.

    Features are float64; NaN where missing.
    """

    key: Int64Array
    micros: Int64Array
    values: dict[str, Float64Array]


def history(view: AggregateView, events: Occurrences) -> History:
    """Return the rows of all moments at which a value of a view changes."""
    of_aggregate = [_counted(aggregate, events) for aggregate in view.aggregates]

    # Moments at which events enter and leave, each once, [m].
    entries = [(counted.key, counted.micros) for counted in of_aggregate]
    exits = [
        (counted.key, (counted.micros // aggregate.pane + aggregate.panes) * aggregate.pane)
        for aggregate, counted in zip(view.aggregates, of_aggregate, strict=True)
        if aggregate.pane is not None
    ]
    pairs = np.concatenate([np.stack(pair, axis=1) for pair in [*entries, *exits]])
    key, micros = np.unique(pairs, axis=0).T
    values = {
        aggregate.name: values_at(aggregate, counted, key, micros)
        for aggregate, counted in zip(view.aggregates, of_aggregate, strict=True)
    }
    return History(key, micros, values)


def _counted(aggregate: Aggregate, events: Occurrences) -> Occurrences:
    """Return the events that an aggregate is of."""
    rows = np.ones(len(events), dtype=np.bool_)
    if aggregate.types:
        rows &= np.isin(events.type, np.array(aggregate.types, dtype=object))
    if aggregate.of_value:
        rows &= events.has_value
    return events.where(rows)


def values_at(
    aggregate: Aggregate, counted: Occurrences, key: Int64Array, micros: Int64Array
) -> Float64Array:
    """Return an aggregate of the counted events as of ``m`` moments, float64 ``[m]``.

    ``key`` and ``micros``, int64 ``[m]``, are in ascending order of both.
    """
    # The events of a moment's window are those from start to stop, [m] each.
    stop = _events_before(counted, key, micros + 1)
    if aggregate.pane is None:
        start = np.searchsorted(counted.key, key)
    else:
        first_pane = micros // aggregate.pane - aggregate.panes + 1
        start = _events_before(counted, key, first_pane * aggregate.pane)
    return _RANGES[aggregate.function](counted.units, start, stop)


def _events_before(events: Occurrences, key: Int64Array, micros: Int64Array) -> Int64Array:
    """Return how many events are of a smaller key, or of the key and before a time, ``[m]``."""
    # Events and moments in one order; a moment comes before the events of its time.
    is_event = np.repeat([False, True], [len(key), len(events)])
    keys, times = np.concatenate([key, events.key]), np.concatenate([micros, events.micros])
    order = np.lexsort((is_event, times, keys))
    before = np.empty(len(order), dtype=np.int64)
    before[order] = np.cumsum(is_event[order])
    return before[: len(key)]


Units = npt.NDArray[np.int64] | npt.NDArray[np.object_]


def _count(_units: Units, start: Int64Array, stop: Int64Array) -> Float64Array:
    return (stop - start).astype(np.float64)


def _units_between(units: Units, start: Int64Array, stop: Int64Array) -> Units:
    """Return exact sums of the units from start to stop, ``[m]``."""
    exact = units.astype(object)
    small = np.abs(units.astype(np.float64)).sum() < _LARGEST_SUM
    sums = np.concatenate([[0], np.cumsum(exact.astype(np.int64) if small else exact)])
    between: Units = sums[stop] - sums[start]
    return between


def _sum(units: Units, start: Int64Array, stop: Int64Array) -> Float64Array:
    return _ratio(_units_between(units, start, stop), np.full(len(start), MICROS))


def _mean(units: Units, start: Int64Array, stop: Int64Array) -> Float64Array:
    return _ratio(_units_between(units, start, stop), (stop - start) * MICROS)


def _ratio(units: Units, divisor: Int64Array) -> Float64Array:
    """Return units over a divisor, correctly rounded as Python does; NaN where it is 0."""
    pairs = zip(units.tolist(), divisor.tolist(), strict=True)
    return np.array([unit / by if by else np.nan for unit, by in pairs], dtype=np.float64)


def _last(units: Units, start: Int64Array, stop: Int64Array) -> Float64Array:
    inside = stop > start
    newest = units[np.maximum(stop - 1, 0)] if len(units) else np.zeros(len(stop), dtype=np.int64)
    return np.where(inside, _ratio(newest, np.full(len(start), MICROS)), np.nan)


def _extreme(
    choose: Callable[[Units, Units], Units],
) -> Callable[[Units, Int64Array, Int64Array], Float64Array]:
    """Return the function for the least or greatest of ranges.

    A sparse table has the extremes of all ranges of each power of two; two of them, which may
    overlap, cover any range (Bender and Farach-Colton, The LCA Problem Revisited, 2000).
    """

    def extreme(units: Units, start: Int64Array, stop: Int64Array) -> Float64Array:
        length = stop - start
        out = np.full(len(start), np.nan)
        level, table = 0, units
        while len(table) and (length >= 1 << level).any():
            # Ranges of at least 2^level and below twice that, from this level's extremes.
            rows = np.flatnonzero((length >= 1 << level) & (length < 2 << level))
            found = choose(table[start[rows]], table[stop[rows] - (1 << level)])
            out[rows] = _ratio(found, np.full(len(rows), MICROS))
            table = choose(table[: -(1 << level)], table[1 << level :])
            level += 1
        return out

    return extreme


_RANGES: dict[str, Callable[[Units, Int64Array, Int64Array], Float64Array]] = {
    "count": _count,
    "sum": _sum,
    "mean": _mean,
    "min": _extreme(np.minimum),
    "max": _extreme(np.maximum),
    "last": _last,
}
