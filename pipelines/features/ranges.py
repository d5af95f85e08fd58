"""Functions of ranges of events: of those from ``start`` to before ``stop``, ``[m]`` ranges each.

Ranges of one key follow each other, and neither end ever goes back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from feature_repo.aggregates.functions import ranked
from feature_repo.arrays import Float64Array, Int64Array
from pipelines.features.occurrences import Values

_LARGEST_SUM = 2**62
_EXACT_FLOAT = 2**53


def sums(units: Values, start: Int64Array, stop: Int64Array) -> Values:
    """Return exact sums of integers, ``[m]``."""
    exact = units.astype(object)
    small = np.abs(units.astype(np.float64)).sum() < _LARGEST_SUM
    totals = np.concatenate([[0], np.cumsum(units.astype(np.int64) if small else exact)])
    between: Values = totals[stop] - totals[start]
    return between


def ratio(units: Values, divisor: Int64Array) -> Float64Array:
    """Return integers over a divisor, correctly rounded as Python does; NaN where it is 0."""
    if units.dtype == np.int64 and max(np.abs(units).max(initial=0), divisor.max(initial=0)) < (
        _EXACT_FLOAT
    ):
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(divisor > 0, units / divisor, np.nan)
    pairs = zip(units.tolist(), divisor.tolist(), strict=True)
    return np.array([unit / by if by else np.nan for unit, by in pairs], dtype=np.float64)


def lasts(values: Values, start: Int64Array, stop: Int64Array) -> Values:
    """Return the last value of each range, ``[m]``; that of an empty one means nothing."""
    if not len(values):
        return np.zeros(len(stop), dtype=np.int64)
    newest: Values = values[np.maximum(stop - 1, start.clip(max=len(values) - 1))]
    return newest


def extremes(
    choose: Callable[[Values, Values], Values], values: Values, start: Int64Array, stop: Int64Array
) -> Values:
    """Return the least or greatest value of each range, ``[m]``; of an empty one it means nothing.

    A sparse table has the extremes of all ranges of each power of two; two of them, which may
    overlap, cover any range (Bender and Farach-Colton, The LCA Problem Revisited, 2000).
    """
    length = stop - start
    out = np.zeros(len(start), dtype=values.dtype)
    level, table = 0, values
    while len(table) and (length >= 1 << level).any():
        # Ranges of at least 2^level and below twice that, from this level's extremes.
        rows = np.flatnonzero((length >= 1 << level) & (length < 2 << level))
        out[rows] = choose(table[start[rows]], table[stop[rows] - (1 << level)])
        table = choose(table[: -(1 << level)], table[1 << level :])
        level += 1
    return out


class Newest:
    """The newest distinct values of a range that only moves forward, each with its last time."""

    def __init__(self, values: Sequence[Any], limit: int) -> None:
        self._values = values
        self._limit = limit
        self._latest: dict[Any, int] = {}

    def add(self, event: int) -> None:
        """Take in the next event."""
        self._latest.pop(self._values[event], None)  # so that it goes to the end
        self._latest[self._values[event]] = event

    def remove(self, event: int) -> None:
        """Forget the oldest event."""
        if self._latest.get(self._values[event]) == event:
            del self._latest[self._values[event]]

    def events(self) -> list[int]:
        """Return the events of the newest values, newest last."""
        events = list(self._latest.values())
        return events[-self._limit :]


class Weights:
    """The weight of each value of a range that only moves forward."""

    def __init__(
        self, values: Sequence[Sequence[Any]], weights: Sequence[int], limit: int, *, shares: bool
    ) -> None:
        """``values``: those of each event; ``shares``: return shares, not values."""
        self._values = values
        self._weights = weights
        self._limit = limit
        self._shares = shares
        self._total: dict[Any, int] = {}

    def add(self, event: int) -> None:
        """Take in the next event."""
        for value in self._values[event]:
            self._total[value] = self._total.get(value, 0) + self._weights[event]

    def remove(self, event: int) -> None:
        """Forget the oldest event."""
        for value in self._values[event]:
            self._total[value] -= self._weights[event]
            if not self._total[value]:
                del self._total[value]

    def top(self) -> list[Any]:
        """Return the values of the greatest weights, or their shares of the weight of all."""
        best = ranked(self._total, self._limit)
        if not self._shares:
            return [value for value, _ in best]
        total = sum(self._total.values())
        return [weight / total for _, weight in best]


def lists(
    fold: Callable[[], Any],
    read: Callable[[Any], list[Any]],
    *,
    key: Int64Array,
    start: Int64Array,
    stop: Int64Array,
) -> Iterator[list[Any]]:
    """Yield a list for each range.

    Args:
        fold: returns an empty fold, which takes in and forgets events.
        read: returns the list of a fold.
        key: the number of each range's key, int64 ``[m]``, ascending.
        start: int64 ``[m]``.
        stop: int64 ``[m]``.

    """
    current, state, first, after = -1, fold(), 0, 0
    for owner, begin, end in zip(key.tolist(), start.tolist(), stop.tolist(), strict=True):
        if owner != current:
            current, state, first, after = owner, fold(), begin, begin
        for event in range(after, end):
            state.add(event)
        for event in range(first, min(begin, end)):
            state.remove(event)
        first, after = max(first, begin), max(after, end)
        yield read(state)


def list_array(rows: Iterator[list[Any]], kind: pa.DataType) -> pa.ListArray:
    """Return lists as one array of lists of a type."""
    offsets, values = [0], []
    for row in rows:
        values += row
        offsets.append(len(values))
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values, kind))


def present(
    key: Int64Array,
    value: Int64Array,
    *,
    enter: Int64Array,
    leave: Int64Array | None,
    position: Callable[[Int64Array, Int64Array], npt.NDArray[Any]],
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return when distinct values come into a window and leave it, as sorted positions.

    A value that occurs again before it has left stays, so its stays are merged.

    Args:
        key: of ``n`` events, int64 ``[n]``.
        value: number of each event's value, int64 ``[n]``.
        enter: the moment from which each event is in the window, int64 ``[n]``, ascending by key.
        leave: the moment from which it is not, int64 ``[n]``; None: never.
        position: maps keys and moments to numbers that sort by both.

    """
    order = np.lexsort((enter, value, key))
    key, value, enter = key[order], value[order], enter[order]
    again = np.zeros(len(order), dtype=np.bool_)
    again[1:] = (key[1:] == key[:-1]) & (value[1:] == value[:-1])
    if leave is None:
        first = ~again
        return np.sort(position(key[first], enter[first])), np.empty(0, dtype=np.int64)
    leave = leave[order]
    stays = again.copy()
    stays[1:] &= enter[1:] <= leave[:-1]
    ends = np.ones(len(order), dtype=np.bool_)
    ends[:-1] = ~stays[1:]
    arrive = np.sort(position(key[~stays], enter[~stays]))
    return arrive, np.sort(position(key[ends], leave[ends]))
