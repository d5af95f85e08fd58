"""The state of one user's or item's aggregates: what events add to, and values are read from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from feature_repo.aggregates.definition import Aggregate, AggregateView, Occurrence
from feature_repo.aggregates.functions import Part, Value

Panes = dict[int, Part]
"""What is kept of the events of each pane, by the pane's number since the epoch."""


@dataclass
class AggregateState:
    """The panes of the aggregates of a view, for one key; no order of events changes them.

    ``panes`` are those of ``view.kept``; ``position`` is the newest entry of the event log that
    they include.
    """

    view: AggregateView
    panes: list[Panes] = field(default_factory=list)
    position: str = "0-0"

    def __post_init__(self) -> None:
        if not self.panes:
            self.panes = [{} for _ in self.view.kept[0]]

    def add(self, events: Iterable[Occurrence]) -> None:
        """Add events, in any order."""
        listed = list(events)
        for aggregate, panes in zip(self.view.kept[0], self.panes, strict=True):
            if counted := [event for event in listed if aggregate.counts(event)]:
                _add_to(panes, aggregate, counted)

    def values(self, micros: int) -> dict[str, Value]:
        """Return the features as of a time, microseconds since the epoch."""
        return {
            aggregate.name: aggregate.value_at(self.panes[place].items(), micros)
            for aggregate, place in zip(self.view.aggregates, self.view.kept[1], strict=True)
        }

    def row(self, micros: int) -> dict[str, Any]:
        """Return the features as of a time and the state, as a row of the view has them."""
        return {**self.values(micros), self.view.state_column: self.dump()}

    def dump(self) -> str:
        """Return the state as JSON: the log position, the definition's hash, and all panes."""
        return orjson.dumps(
            {"position": self.position, "of": self.view.version, "panes": self.sorted_panes()}
        ).decode()

    def sorted_panes(self) -> list[list[tuple[int, Part]]]:
        """Return the panes of each aggregate with their numbers, ascending."""
        return [sorted(panes.items()) for panes in self.panes]

    @classmethod
    def load(cls, view: AggregateView, text: str | None) -> AggregateState | None:
        """Restore a state from its ``dump``; None: there is none, or of another definition."""
        if not text:
            return None
        stored = orjson.loads(text)
        if stored["of"] != view.version:
            return None
        return cls.of(view, stored["panes"], stored["position"])

    @classmethod
    def of(
        cls, view: AggregateView, panes: list[list[tuple[int, Part]]] | None, position: str
    ) -> AggregateState:
        """Restore a state from its ``sorted_panes``; None: it has no events."""
        return cls(view, [dict(pairs) for pairs in panes or []], position)


_BEFORE_POSITION = '{"position":"'


def position_of(text: str) -> str:
    """Return the log position of a stored state, without reading all of it."""
    return text[len(_BEFORE_POSITION) : text.index('"', len(_BEFORE_POSITION))]


def is_of(view: AggregateView, text: str) -> bool:
    """Return whether a stored state is of a definition, without reading all of it."""
    return f'"of":"{view.version}"' in text


def values_of(view: AggregateView, text: str | None, micros: int) -> dict[str, Value]:
    """Return the features of a stored state as of a time.

    They are all missing if it is of another definition; without a state there are none to return.
    """
    if not text:
        return {}
    stored = orjson.loads(text)
    if stored["of"] != view.version:
        return {aggregate.name: None for aggregate in view.aggregates}
    # Without the state's dictionaries, since a request waits for this.
    return {
        aggregate.name: aggregate.value_at(stored["panes"][place], micros)
        for aggregate, place in zip(view.aggregates, view.kept[1], strict=True)
    }


def _add_to(panes: Panes, aggregate: Aggregate, events: Sequence[Occurrence]) -> None:
    """Add events that an aggregate counts, at least one."""
    parts = [(aggregate.pane_of(event.micros), aggregate.part(event)) for event in events]
    outside = max([pane for pane, _ in parts] + list(panes)) - aggregate.panes
    for pane, part in parts:
        if pane > outside:
            panes[pane] = aggregate.merge(panes[pane], part) if pane in panes else part
    # Panes outside the window go at once, so that the state does not depend on the order.
    for old in [old for old in panes if old <= outside]:
        del panes[old]
