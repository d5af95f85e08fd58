"""The overlay: accepted events that the stream may not have folded into features yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from feature_repo import columns as c
from feature_repo.aggregates.definition import AggregateView, Occurrence
from feature_repo.aggregates.reading import EventReader
from feature_repo.aggregates.state import AggregateState, is_of, position_of, values_of
from feature_repo.events.log_position import event_micros, position_key
from feature_repo.events.stored import parse_stored

Columns = dict[str, list[Any]]


@dataclass(frozen=True)
class AcceptedEvent:
    """An accepted event of a user, with its position in the log and its time in microseconds.

    ``value``: None if it has none; ``context``: its fields.
    """

    position: str
    event_id: str
    user: str
    item: str
    type: str
    micros: int
    value: float | None = None
    context: dict[str, Any] = field(default_factory=dict)


def parse_overlay(entries: Sequence[bytes]) -> list[AcceptedEvent]:
    """Return a user's overlay, oldest first, from its entries as Redis keeps them, newest first."""
    accepted = []
    for entry in reversed(entries):
        position, _, payload = entry.decode().partition("|")
        event = parse_stored(payload)
        accepted.append(
            AcceptedEvent(
                position=position,
                event_id=event["event_id"],
                user=event["user_id"],
                item=event["item_id"],
                type=event["type"],
                micros=event_micros(event["timestamp"], position),
                value=event.get("value"),
                context=event.get("context", {}),
            )
        )
    return accepted


class Overlay:
    """Merges a user's accepted events into their stored features."""

    def __init__(self, events: EventReader, views: Sequence[AggregateView]) -> None:
        """``events``: reads the data set's events; ``views``: those whose states are stored."""
        self._events = events
        self._views = views

    def merge(
        self, columns: Columns, accepted: Sequence[AcceptedEvent], micros: int
    ) -> tuple[str | None, str | None]:
        """Set the features of a user to their values as of a time, with the overlay's events.

        The seen lists take every event, since an event that they hold already changes nothing.
        Aggregates take the events that are newer than their state. A view without a stored state
        has the values of its row, which are missing where there is none and no event was accepted.
        Those of a state of another definition are missing.

        Args:
            columns: the stored row, changed in place; the columns of states are removed.
            accepted: the overlay, oldest first.
            micros: the time, microseconds since the epoch.

        Returns:
            the newest log position of the stored row, and the newest with the overlay.

        """
        known = [event for event in accepted if event.type in self._events.weights]
        for kind in self._events.weights:
            name = c.seen(kind)
            seen = [event.item for event in known if event.type == kind]
            if seen and name in columns:
                columns[name][0] = [*(columns[name][0] or ()), *seen]
        events = [(position_key(event.position), self._read(event)) for event in known]
        positions = [self._compute(view, columns, events, micros) for view in self._views]
        stored = max((at for at in positions if at), key=position_key, default=None)
        arrived = [event.position for event in known]
        newest = max([*arrived, *([stored] if stored else [])], key=position_key, default=None)
        return stored, newest

    def _compute(
        self,
        view: AggregateView,
        columns: Columns,
        events: Sequence[tuple[tuple[int, int], Occurrence]],
        micros: int,
    ) -> str | None:
        """Set the features of one view; return the log position of its stored state.

        ``events``: the overlay, each with its log position in a form that sorts.
        """
        stored: str | None = columns.pop(view.state_column, [None])[0]
        position = position_of(stored) if stored else None
        included = position_key(position)
        new = [event for at, event in events if at > included]
        if new and (not stored or is_of(view, stored)):
            state = AggregateState.load(view, stored) or AggregateState(view)
            state.add(new)
            values = state.values(micros)
        elif stored and view.is_timeless and is_of(view, stored):
            return position  # the stored values hold at any time
        else:
            values = values_of(view, stored, micros)
        columns.update({name: [value] for name, value in values.items()})
        return position

    def _read(self, event: AcceptedEvent) -> Occurrence:
        return self._events.read(
            event.micros,
            event.event_id,
            event.type,
            user=event.user,
            item=event.item,
            value=event.value,
            context=event.context,
        )
