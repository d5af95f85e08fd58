"""What an aggregate of events is: the one definition for Spark's batch, the stream and the overlay.

A value as of ``t`` covers the events with ``t - window < event time <= t``, to a *pane*: a window
slides by a sixtieth of its length, at least by a minute. So it covers the pane of ``t`` and as many
before it as make up the window. A daily aggregate has panes of a day, and is computed as of each
midnight. Numbers are added in millionths, which makes sums exact and independent of the order of
events.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple
from zlib import crc32

from feature_repo import columns as c
from feature_repo.aggregates.condition import columns_of, predicate
from feature_repo.aggregates.functions import FUNCTIONS, Function, Name, Part, Value, trend_of
from feature_repo.units import DAY_MICROS, MICROS, units_of

_LEAST_PANE = 60 * MICROS
_PANES = 60

ValueKind = Literal["integer", "number", "integers", "numbers", "texts"]
"""What the values of a feature are: one, or a list (``integers`` ...)."""

LISTS: dict[Name, ValueKind] = {
    "last_distinct": "texts",
    "last_distinct_times": "integers",
    "top": "texts",
    "top_shares": "numbers",
}
"""Functions whose values are lists, which have a length, and of what."""


class Occurrence(NamedTuple):
    """An event as an aggregate sees it.

    Attributes:
        micros: event time, microseconds since the epoch.
        event_id: orders events of one time.
        type: event type.
        columns: all columns by name, numbers in millionths; None or absent: missing.
        weight: of its type, in millionths.

    """

    micros: int
    event_id: str
    type: str
    columns: Mapping[str, Any]
    weight: int = MICROS


def occurrence(
    micros: int,
    event_id: str,
    type_: str,
    *,
    value: float | None = None,
    others: Mapping[str, Any] | None = None,
    weight: float = 1.0,
) -> Occurrence:
    """Return an event; ``others`` are its further columns, such as ids and its context."""
    columns: dict[str, Any] = {
        c.EVENT_ID: event_id,
        c.TYPE: type_,
        c.TIMESTAMP: micros,
        c.DAY: micros // DAY_MICROS,
        c.VALUE: units_of(value),
    }
    for name, other in (others or {}).items():
        columns[name] = units_of(other) if isinstance(other, float) else other
    return Occurrence(micros, event_id, type_, columns, units_of(weight) or 0)


@dataclass(frozen=True)
class Aggregate:
    """One function of the events of a key within a window.

    Attributes:
        name: of the feature.
        function: what is computed.
        column: of which column of the events; an event that lacks it does not count.
        window: microseconds; None: since the beginning.
        types: the event types that count; empty: all.
        where: a condition that counted events fulfil; "": none.
        limit: length of a list.
        daily: whether it is of whole days, as of each midnight.

    """

    name: str
    function: Name
    column: str = c.VALUE
    window: int | None = None
    types: tuple[str, ...] = ()
    where: str = ""
    limit: int = 0
    daily: bool = False

    @cached_property
    def pane(self) -> int | None:
        """Length of a pane in microseconds; None: one pane holds all time."""
        if self.window is None:
            return None
        return DAY_MICROS if self.daily else max(_LEAST_PANE, self.window // _PANES)

    @cached_property
    def panes(self) -> int:
        """Number of panes in the window."""
        return 1 if self.window is None or self.pane is None else -(-self.window // self.pane)

    @property
    def kind(self) -> ValueKind:
        """What the values are."""
        if self.function in LISTS:
            return LISTS[self.function]
        whole = self.function in ("count", "count_distinct")
        return "integer" if whole or self.column == c.TIMESTAMP else "number"

    @cached_property
    def _function(self) -> Function:
        return FUNCTIONS[self.function]

    def pane_of(self, micros: int) -> int:
        """Return the number of the pane of a time since the epoch."""
        return 0 if self.pane is None else micros // self.pane

    def counts(self, event: Occurrence) -> bool:
        """Return whether an event is one of those that the aggregate is of."""
        if self.types and event.type not in self.types:
            return False
        if event.columns.get(self.column) is None:
            return False
        return not self.where or predicate(self.where)(event.columns)

    def part(self, event: Occurrence) -> Part:
        """Return what is kept of one event."""
        value = event.columns[self.column]
        return self._function.part(event.micros, event.event_id, value, event.weight)

    def merge(self, part: Part, other: Part) -> Part:
        """Return what is kept of the events of two parts."""
        return self._function.merge(part, other, self.limit)

    def value(self, parts: Sequence[Part]) -> Value:
        """Return the value of the events of some parts.

        Nothing counts 0 and sums to 0; a mean, extreme or last value of nothing is missing.
        """
        value = self._function.value(parts, self.limit)
        if value is None or self.function not in ("sum", "min", "max", "last"):
            return value
        assert isinstance(value, int)
        return value // MICROS if self.kind == "integer" else value / MICROS

    def value_at(self, panes: Iterable[tuple[int, Part]], micros: int) -> Value:
        """Return the value of the window as of a time, from panes by their numbers."""
        last = self.pane_of(micros)
        first = last - self.panes
        if self.function == "trend":
            inside = [(pane, part[0]) for pane, part in panes if first < pane <= last]
            recent = [count for pane, count in inside if pane > last - self.panes // 4]
            return trend_of(sum(recent), sum(count for _, count in inside), self.panes)
        return self.value([part for pane, part in panes if first < pane <= last])


@dataclass(frozen=True)
class AggregateView:
    """The aggregates of one feature view: those of every user, or of every item.

    Attributes:
        name: of the view.
        key: the column that the events are grouped by.
        aggregates: what is computed.
        ttl_days: after so many days without a new row the values count as missing; None: never.

    """

    name: str
    key: str
    aggregates: tuple[Aggregate, ...]
    ttl_days: int | None = None

    @property
    def daily(self) -> bool:
        """Whether the values are as of each midnight, so that no stream changes them."""
        return self.aggregates[0].daily

    @cached_property
    def is_timeless(self) -> bool:
        """Whether values change with new events only: no window passes."""
        return all(aggregate.window is None for aggregate in self.aggregates)

    @cached_property
    def version(self) -> str:
        """A short hash of the definition, which stored states carry."""
        return f"{crc32(repr(self).encode()):08x}"

    @cached_property
    def kept(self) -> tuple[tuple[Aggregate, ...], tuple[int, ...]]:
        """The aggregates whose panes are kept, and for each aggregate which of them it reads.

        Those that keep the same of the same events share it, as items and their times do.
        """
        places: dict[Any, int] = {}
        kept: list[Aggregate] = []
        of: list[int] = []
        for one in self.aggregates:
            part = FUNCTIONS[one.function].part
            same = (part, one.column, one.window, one.types, one.where, one.limit)
            if same not in places:
                places[same] = len(kept)
                kept.append(one)
            of.append(places[same])
        return tuple(kept), tuple(of)

    @property
    def state_column(self) -> str:
        """Name of the column that the values as of any later moment follow from."""
        return f"{self.name}_state"

    @property
    def columns(self) -> set[str]:
        """The columns of events that the aggregates and their conditions read."""
        conditions = (columns_of(aggregate.where) for aggregate in self.aggregates)
        return {aggregate.column for aggregate in self.aggregates}.union(*conditions)
