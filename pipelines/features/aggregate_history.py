"""All values that aggregates ever had: one row for each moment at which a key's row changes.

A window's value changes when an event enters it and when the event's pane leaves it, so the rows
number at most the events times one more than the windows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from feature_repo.aggregates.definition import Aggregate, AggregateView, ValueKind
from feature_repo.aggregates.functions import EXACT, distinct, hashed, trend_of
from feature_repo.arrays import Float64Array, Int64Array
from feature_repo.units import DAY_MICROS, MICROS
from pipelines.features import ranges
from pipelines.features.occurrences import Occurrences, Values

ARROW: dict[ValueKind, pa.DataType] = {
    "integer": pa.int64(),
    "number": pa.float64(),
    "integers": pa.list_(pa.int64()),
    "numbers": pa.list_(pa.float32()),
    "texts": pa.list_(pa.string()),
}
"""Types of the columns of tables."""


@dataclass(frozen=True)
class History:
    """``m`` rows by key and time: ``key`` and ``micros`` int64 ``[m]``, and each feature ``[m]``.

    Features are arrays of the types of ``ARROW``.
    """

    key: Int64Array
    micros: Int64Array
    values: dict[str, pa.Array]


@dataclass(frozen=True)
class Days:
    """Which midnights the rows of daily aggregates are of; days since the epoch.

    Attributes:
        last: the midnight of the last rows.
        heartbeat: an unchanged row is repeated after so many days, and at ``last``; None: never.

    """

    last: int
    heartbeat: int | None = None


def history(
    view: AggregateView,
    events: Occurrences,
    days: Days | None = None,
    until: int | None = None,
) -> History:
    """Return the rows of all moments at which a value of a view changes.

    Args:
        view: what to compute.
        events: of some keys.
        days: of daily aggregates, whose rows are of midnights and include no event from then on.
        until: the last moment, microseconds since the epoch; None: that of the last change.

    """
    selected = _Selected(events)
    key, micros = _changes(view, selected)
    if until is not None:
        inside = micros <= until
        key, micros = key[inside], micros[inside]
    as_of = micros
    if days:
        key, micros = _midnights(key, micros, days)
        as_of = micros - 1
    windows = _Windows(selected, key, as_of)
    values = {one.name: _values(one, windows) for one in view.aggregates}
    return History(key, micros, values)


class _Selected:
    """The events that each aggregate is of; aggregates of the same events share them."""

    def __init__(self, events: Occurrences) -> None:
        self.events = events
        self._rows: dict[Any, Int64Array] = {}
        self._numbered: dict[str, tuple[list[Any], Int64Array]] = {}

    def rows(self, aggregate: Aggregate) -> Int64Array:
        """Return which events an aggregate is of, ascending, int64 ``[k]``."""
        same = self.same(aggregate)
        if same not in self._rows:
            self._rows[same] = self.events.rows_of(aggregate)
        return self._rows[same]

    def numbered(self, column: str) -> tuple[list[Any], Int64Array]:
        """Return the distinct values of a column, and the number of each event's, int64 ``[n]``."""
        if column not in self._numbered:
            given = self.events.column(column)
            numbers = np.full(len(self.events), -1, dtype=np.int64)
            names, numbers[given.known] = np.unique(given.values[given.known], return_inverse=True)
            self._numbered[column] = (names.tolist(), numbers)
        return self._numbered[column]

    def same(self, aggregate: Aggregate) -> tuple[Any, ...]:
        """Return what is equal for aggregates of the same events."""
        everywhere = bool(self.events.column(aggregate.column).known.all())
        return (None if everywhere else aggregate.column, aggregate.types, aggregate.where)


def _changes(view: AggregateView, selected: _Selected) -> tuple[Int64Array, Int64Array]:
    """Return the moments at which events enter or leave windows, each once, int64 ``[m]``."""
    key, micros = selected.events.key, selected.events.micros
    pairs = []
    for one in {(selected.same(a), a.pane, a.panes): a for a in view.aggregates}.values():
        rows = selected.rows(one)
        enter = micros[rows]
        if one.daily:
            enter = (enter // DAY_MICROS + 1) * DAY_MICROS
        pairs.append(np.stack([key[rows], enter], axis=1))
        if one.pane is not None:
            leave = (micros[rows] // one.pane + one.panes + one.daily) * one.pane
            pairs.append(np.stack([key[rows], leave], axis=1))
    moments = np.concatenate(pairs)
    if not len(moments):
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    moments = moments[np.lexsort((moments[:, 1], moments[:, 0]))]
    new = np.ones(len(moments), dtype=np.bool_)
    new[1:] = (moments[1:] != moments[:-1]).any(axis=1)
    return moments[new, 0], moments[new, 1]


def _midnights(key: Int64Array, micros: Int64Array, days: Days) -> tuple[Int64Array, Int64Array]:
    """Return the rows up to the last midnight, with those that only say that nothing changed."""
    inside = micros <= days.last * DAY_MICROS
    key, day = key[inside], micros[inside] // DAY_MICROS
    if days.heartbeat is None or not len(key):
        return key, day * DAY_MICROS

    # A key's rows end with that of the last midnight, which may be new.
    ends = np.append(np.flatnonzero(key[1:] != key[:-1]), len(key) - 1)
    ends = ends[day[ends] < days.last]
    key = np.insert(key, ends + 1, key[ends])
    day = np.insert(day, ends + 1, days.last)

    # Each row is repeated until the key's next one.
    following = np.append(day[1:], day[-1])
    following[:-1] = np.where(key[1:] == key[:-1], following[:-1], day[:-1])
    times = np.maximum(1, -(-(following - day) // days.heartbeat))
    number = np.arange(times.sum()) - np.repeat(np.cumsum(times) - times, times)
    return np.repeat(key, times), (np.repeat(day, times) + number * days.heartbeat) * DAY_MICROS


class _Windows:
    """Which of the selected events are in the window of each moment."""

    def __init__(self, selected: _Selected, key: Int64Array, as_of: Int64Array) -> None:
        self.selected = selected
        self.key = key
        self.as_of = as_of
        self._known: dict[Any, tuple[Int64Array, Int64Array]] = {}

    def of(self, aggregate: Aggregate) -> tuple[Int64Array, Int64Array]:
        """Return the first selected event of each window, and that after the last, ``[m]``."""
        same = (*self.selected.same(aggregate), aggregate.pane, aggregate.panes)
        if same not in self._known:
            rows = self.selected.rows(aggregate)
            self._known[same] = self.within(rows, aggregate.pane, aggregate.panes)
        return self._known[same]

    def within(
        self, rows: Int64Array, pane: int | None, panes: int
    ) -> tuple[Int64Array, Int64Array]:
        """Return the first of some events in each window, and that after the last, ``[m]``."""
        events = self.selected.events
        at = self.position(events.key[rows], events.micros[rows])
        stop = np.searchsorted(at, self.position(self.key, self.as_of), side="right")
        if pane is None:
            return np.searchsorted(events.key[rows], self.key), stop
        first = (self.as_of // pane - panes + 1) * pane
        return np.searchsorted(at, self.position(self.key, first)), stop

    def position(self, key: Int64Array, micros: Int64Array) -> npt.NDArray[Any]:
        """Return numbers that sort as key and time do, for times as far as events are known."""
        least, width = self.span
        numbers = key.astype(self._number) * width
        return numbers + np.clip(micros - least, 0, width - 1)

    @cached_property
    def span(self) -> tuple[int, int]:
        """A time before all, and how many there are up to one after all, microseconds."""
        times = [self.selected.events.micros, self.as_of]
        least = min(int(part.min()) for part in times if len(part)) - 1
        greatest = max(int(part.max()) for part in times if len(part))
        return least, greatest - least + 2

    @cached_property
    def _number(self) -> Any:
        """The type in which all numbers of ``position`` fit."""
        largest = (int(self.key.max(initial=0)) + 1) * self.span[1]
        return np.int64 if largest < 2**63 else object

    def column(self, aggregate: Aggregate) -> Values:
        """Return an aggregate's column of the selected events, ``[k]``."""
        events = self.selected.events
        return events.column(aggregate.column).values[self.selected.rows(aggregate)]


def _values(aggregate: Aggregate, windows: _Windows) -> pa.Array:
    """Return an aggregate as of each moment, ``[m]``."""
    start, stop = windows.of(aggregate)
    function = aggregate.function
    if function == "count":
        return pa.array(stop - start)
    if function == "count_distinct":
        return pa.array(_distinct(aggregate, windows, start, stop))
    if function == "trend":
        return pa.array(_trend(aggregate, windows, start, stop))
    if function in ("last_distinct", "last_distinct_times", "top", "top_shares"):
        return _lists(aggregate, windows, start, stop)

    column = windows.column(aggregate)
    empty = stop <= start
    if function in ("sum", "mean"):
        divisor = np.full(len(start), MICROS) if function == "sum" else (stop - start) * MICROS
        return _numbers(ranges.ratio(ranges.sums(column, start, stop), divisor))
    if function == "last":
        chosen = ranges.lasts(column, start, stop)
    else:
        choose = np.minimum if function == "min" else np.maximum
        chosen = ranges.extremes(choose, column, start, stop)
    if aggregate.kind == "integer":
        return pa.array(chosen // MICROS, pa.int64(), mask=empty)
    values = ranges.ratio(chosen, np.full(len(start), MICROS))
    return _numbers(np.where(empty, np.nan, values))


def _numbers(values: Float64Array) -> pa.Array:
    return pa.array(values, pa.float64(), mask=np.isnan(values))


def _trend(
    aggregate: Aggregate, windows: _Windows, start: Int64Array, stop: Int64Array
) -> Float64Array:
    assert aggregate.pane is not None
    rows = windows.selected.rows(aggregate)
    newest, _ = windows.within(rows, aggregate.pane, aggregate.panes // 4)
    pairs = zip((stop - newest).tolist(), (stop - start).tolist(), strict=True)
    return np.array([trend_of(*pair, aggregate.panes) for pair in pairs], dtype=np.float64)


def _distinct(
    aggregate: Aggregate, windows: _Windows, start: Int64Array, stop: Int64Array
) -> Int64Array:
    """Return numbers of distinct values, int64 ``[m]``: an estimate where streams estimate."""
    events = windows.selected.events
    rows = windows.selected.rows(aggregate)
    names, numbers = windows.selected.numbered(aggregate.column)
    value = numbers[rows]
    micros = events.micros[rows]
    pane = aggregate.pane
    leave = None if pane is None else (micros // pane + aggregate.panes) * pane
    arrive, go = ranges.present(
        events.key[rows], value, enter=micros, leave=leave, position=windows.position
    )

    # Values that came in, less those that went: of this key, up to each moment.
    now = windows.position(windows.key, windows.as_of)
    begin = windows.position(windows.key, np.full(len(now), windows.span[0]))
    counts = np.searchsorted(arrive, now, side="right") - np.searchsorted(arrive, begin)
    counts -= np.searchsorted(go, now, side="right") - np.searchsorted(go, begin)
    if aggregate.daily or counts.max(initial=0) < EXACT:
        return np.asarray(counts, dtype=np.int64)
    hashes = np.array([hashed(name) for name in names])[value]
    for row in np.flatnonzero(counts >= EXACT):
        counts[row] = distinct(hashes[start[row] : stop[row]].tolist())
    return np.asarray(counts, dtype=np.int64)


def _lists(
    aggregate: Aggregate, windows: _Windows, start: Int64Array, stop: Int64Array
) -> pa.Array:
    rows = windows.selected.rows(aggregate)
    values = windows.column(aggregate).tolist()
    limit = aggregate.limit
    kind = ARROW[aggregate.kind].value_type
    if aggregate.function in ("top", "top_shares"):
        several = [_names(value) for value in values]
        weights = windows.selected.events.weight[rows].tolist()
        shares = aggregate.function == "top_shares"
        tops = ranges.lists(
            lambda: ranges.Weights(several, weights, limit, shares=shares),
            lambda fold: fold.top(),
            key=windows.key, start=start, stop=stop,
        )  # fmt: skip
        return ranges.list_array(tops, kind)
    if aggregate.function == "last_distinct_times":
        given = (windows.selected.events.micros[rows] // MICROS).tolist()
    else:
        given = [str(value) for value in values]
    newest = ranges.lists(
        lambda: ranges.Newest(values, limit),
        lambda fold: [given[event] for event in fold.events()],
        key=windows.key, start=start, stop=stop,
    )  # fmt: skip
    return ranges.list_array(newest, kind)


def _names(value: Any) -> list[str]:
    """Return the values of a column of one or several, each once."""
    names = value if isinstance(value, list | tuple | np.ndarray) else (value,)
    return [name for name in dict.fromkeys(names) if name]
