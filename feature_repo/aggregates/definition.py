"""What a windowed aggregate is: the one definition for Spark's batch, the stream and the overlay.

A value as of ``t`` covers the events with ``t - window < event time <= t``, to a *pane*: a window
slides by a sixtieth of its length, at least by a minute. So it covers the pane of ``t`` and as many
before it as make up the window. Numbers are added in millionths, which makes sums exact and
independent of the order of events.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple
from zlib import crc32

MICROS = 1_000_000
_LEAST_PANE = 60 * MICROS
_PANES = 60

Function = Literal["count", "sum", "mean", "min", "max", "last"]

Part = list[Any]
"""What is kept of the events of a pane: a few JSON values, merged in any order."""


def units_of(value: float | None) -> int | None:
    """Return a value in millionths, halves away from zero as Spark rounds; None stays None."""
    if value is None:
        return None
    size = abs(value) * MICROS
    whole = math.floor(size)
    units = whole + (size - whole >= 0.5)
    return -units if value < 0 else units


class Occurrence(NamedTuple):
    """An event as an aggregate sees it.

    Attributes:
        micros: event time, microseconds since the epoch.
        event_id: orders events of one time.
        type: event type.
        units: the event's value in millionths; None: it has none.

    """

    micros: int
    event_id: str
    type: str
    units: int | None


@dataclass(frozen=True)
class Aggregate:
    """One function of the events of a key within a window.

    Attributes:
        name: of the feature.
        function: what is computed.
        of_value: whether only events with a value count, as for every function of the value.
        window: microseconds; None: since the beginning.
        types: the event types that count; empty: all.

    """

    name: str
    function: Function
    of_value: bool = True
    window: int | None = None
    types: tuple[str, ...] = ()

    @property
    def pane(self) -> int | None:
        """Length of a pane in microseconds; None: one pane holds all time."""
        return None if self.window is None else max(_LEAST_PANE, self.window // _PANES)

    @property
    def panes(self) -> int:
        """Number of panes in the window."""
        return 1 if self.window is None or self.pane is None else -(-self.window // self.pane)

    @property
    def is_integer(self) -> bool:
        """Whether the values are integers."""
        return self.function == "count"

    def pane_of(self, micros: int) -> int:
        """Return the number of the pane of a time since the epoch."""
        return 0 if self.pane is None else micros // self.pane

    def counts(self, event: Occurrence) -> bool:
        """Return whether an event is one of those that the aggregate is of."""
        has_type = not self.types or event.type in self.types
        return has_type and (event.units is not None or not self.of_value)

    def part(self, event: Occurrence) -> Part:
        """Return what is kept of one event."""
        return _FUNCTIONS[self.function].part(event)

    def merge(self, part: Part, other: Part) -> Part:
        """Return what is kept of the events of two parts."""
        return _FUNCTIONS[self.function].merge(part, other)

    def value(self, parts: Sequence[Part]) -> float | int | None:
        """Return the value of the events of some parts.

        Nothing counts 0 and sums to 0; a mean, extreme or last value of nothing is missing.
        """
        return _FUNCTIONS[self.function].value(parts)

    def value_at(self, panes: Iterable[tuple[int, Part]], micros: int) -> float | int | None:
        """Return the value of the window as of a time, from panes by their numbers."""
        last = self.pane_of(micros)
        first = last - self.panes
        return self.value([part for pane, part in panes if first < pane <= last])


@dataclass(frozen=True)
class AggregateView:
    """The aggregates of one feature view: those of every user, or of every item.

    ``key`` is the column that the events are grouped by.
    """

    name: str
    key: str
    aggregates: tuple[Aggregate, ...]

    @cached_property
    def version(self) -> str:
        """A short hash of the definition, which stored states carry."""
        return f"{crc32(repr(self).encode()):08x}"

    @property
    def state_column(self) -> str:
        """Name of the column that the values as of any later moment follow from."""
        return f"{self.name}_state"


class _Function(NamedTuple):
    part: Callable[[Occurrence], Part]
    merge: Callable[[Part, Part], Part]
    value: Callable[[Sequence[Part]], float | int | None]


def _add(part: Part, other: Part) -> Part:
    return [mine + theirs for mine, theirs in zip(part, other, strict=True)]


def _total(parts: Sequence[Part]) -> int:
    """Return the sum of the first value of each part."""
    return sum([part[0] for part in parts])


def _mean(parts: Sequence[Part]) -> float | None:
    count = sum([part[1] for part in parts])
    return _total(parts) / (count * MICROS) if count else None


def _of_value(choose: Callable[..., Part]) -> _Function:
    """Return a function that keeps the least or greatest part, which ends in a value."""
    return _Function(
        lambda event: [event.units],
        choose,
        lambda parts: choose(parts)[-1] / MICROS if parts else None,
    )


_FUNCTIONS: dict[Function, _Function] = {
    "count": _Function(lambda _: [1], _add, _total),
    "sum": _Function(lambda event: [event.units], _add, lambda parts: _total(parts) / MICROS),
    "mean": _Function(lambda event: [event.units, 1], _add, _mean),
    "min": _of_value(min),
    "max": _of_value(max),
    "last": _of_value(max)._replace(part=lambda e: [e.micros, e.event_id, e.units]),
}
