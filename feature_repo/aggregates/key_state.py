"""What the stream keeps of one user or item: the states of its views, up to a log position.

The states do not depend on the order in which events arrive. The Spark stream, the Spark batch job
and the server's overlay of events that the stream has not processed yet all add events to them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from feature_repo.aggregates.definition import AggregateView, Occurrence
from feature_repo.aggregates.state import AggregateState
from feature_repo.events.log_position import arrival_micros

NOTHING = "0-0"
"""The position before all entries of a log."""


@dataclass
class KeyState:
    """The states of the views of a key; ``position`` is the newest log entry that they include."""

    states: list[AggregateState]
    position: str = NOTHING

    @classmethod
    def empty(cls, views: Sequence[AggregateView], position: str = NOTHING) -> KeyState:
        """Return the state of a key without events."""
        return cls([AggregateState(view) for view in views], position)

    def add(self, events: Iterable[Occurrence]) -> None:
        """Add events, in any order."""
        listed = list(events)
        for state in self.states:
            state.add(listed)

    def dump(self) -> str:
        """Return the state as JSON."""
        panes = {state.view.name: state.sorted_panes() for state in self.states}
        return orjson.dumps({"position": self.position, "aggregates": panes}).decode()

    @classmethod
    def load(cls, text: str, views: Sequence[AggregateView]) -> KeyState:
        """Restore a state from its ``dump``, of the views of the same definitions."""
        stored = orjson.loads(text)
        position, panes = stored["position"], stored["aggregates"]
        states = [AggregateState.of(view, panes.get(view.name), position) for view in views]
        return cls(states, position)

    def row(self) -> dict[str, Any]:
        """Return the features as of the newest log entry, and the states, as Feast stores them."""
        arrived = arrival_micros(self.position)
        row: dict[str, Any] = {}
        for state in self.states:
            state.position = self.position
            row |= state.row(arrived)
        return row
