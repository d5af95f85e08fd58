"""The overlay: accepted events that the stream may not have folded into features yet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from feature_repo import columns as c
from feature_repo.aggregates.definition import AggregateView, occurrence
from feature_repo.aggregates.state import AggregateState, values_of
from feature_repo.dataset import DatasetSpec
from feature_repo.events.stored import parse_stored
from feature_repo.facts import MICROS, Counts, count_row, event_micros, panes_of, position_key

Columns = dict[str, list[Any]]


@dataclass(frozen=True)
class AcceptedEvent:
    """An accepted event of a user, with its position in the log and its time in microseconds.

    ``value``: None if it has none.
    """

    position: str
    event_id: str
    item: str
    type: str
    micros: int
    value: float | None = None


def parse_overlay(entries: Sequence[bytes]) -> list[AcceptedEvent]:
    """Return a user's overlay, oldest first, from its entries as Redis keeps them, newest first."""
    accepted = []
    for entry in reversed(entries):
        position, _, payload = entry.decode().partition("|")
        event = parse_stored(payload)
        micros = event_micros(event["timestamp"], position)
        accepted.append(
            AcceptedEvent(
                position=position,
                event_id=event["event_id"],
                item=event["item_id"],
                type=event["type"],
                micros=micros,
                value=event.get("value"),
            )
        )
    return accepted


def merge_overlay(
    columns: Columns,
    accepted: Sequence[AcceptedEvent],
    spec: DatasetSpec,
    category: Callable[[str], str],
) -> str | None:
    """Merge a user's overlay into their feature row; return the newest position it includes.

    The history and the seen lists take every event, since an event that they hold already changes
    nothing. Counts take the events that are newer than the row's position. A repeated item moves to
    its newest time; events of one microsecond are in the order of their ids, as the stream folds
    them. ``category`` returns the main category of an item.
    """
    known = [event for event in accepted if event.type in spec.events.types]
    known.sort(key=lambda event: (event.micros, event.event_id))
    _merge_history(columns, [event for event in known if spec.events.types[event.type].positive])
    for kind in spec.event_types:
        name = c.seen(kind)
        seen = [event.item for event in known if event.type == kind]
        if seen and name in columns:
            columns[name][0] = [*(columns[name][0] or ()), *seen]
    position: str | None = columns[c.POSITION][0] if c.POSITION in columns else None
    fresh = _not_included(known, position or "0-0")
    if not fresh:
        return position
    newest = max((event.position for event in fresh), key=position_key)
    if c.RECENT_ITEMS in columns:
        _merge_recent(columns, fresh, spec, newest=newest, category=category)
    elif c.POSITION in columns:
        columns[c.POSITION][0] = newest
    return newest


def compute_aggregates(
    columns: Columns,
    accepted: Sequence[AcceptedEvent],
    views: Sequence[AggregateView],
    micros: int,
) -> None:
    """Set the features of declared views to their values as of a time, with the overlay's events.

    A view without a stored state has the values of its row, which are missing where there is none
    and no event was accepted. Those of a state of another definition are missing.
    """
    for view in views:
        stored = columns.pop(view.state_column, [None])[0]
        state = None
        if accepted:
            state = AggregateState.load(view, stored) if stored else AggregateState(view)
        new = _not_included(accepted, state.position) if state else []
        if state and new:
            state.add(
                occurrence(e.micros, e.event_id, e.type, value=e.value, others={c.ITEM: e.item})
                for e in new
            )
            values = state.values(micros)
        else:
            values = values_of(view, stored, micros)
        columns.update({name: [value] for name, value in values.items()})


def _not_included(accepted: Sequence[AcceptedEvent], position: str) -> list[AcceptedEvent]:
    """Return the accepted events after a log position."""
    included = position_key(position)
    return [event for event in accepted if position_key(event.position) > included]


def _merge_history(columns: Columns, events: Sequence[AcceptedEvent]) -> None:
    """Move each event's item to its newest time, and keep the newest items."""
    items = columns[c.HISTORY_ITEMS][0]
    times = columns[c.HISTORY_TIMES][0]
    latest: dict[str, tuple[int, str]] = {}
    if times is not None:
        # The row has whole seconds; the overlay has the microseconds of the events that both have.
        latest = {item: (second * MICROS, "") for item, second in zip(items, times, strict=True)}
    for event in events:
        if (event.micros, event.event_id) > latest.get(event.item, (-1, "")):
            latest[event.item] = (event.micros, event.event_id)
    newest = sorted(latest.items(), key=lambda pair: pair[1])[-c.HISTORY_LENGTH :]
    columns[c.HISTORY_ITEMS][0] = [item for item, _ in newest]
    columns[c.HISTORY_TIMES][0] = [micros // MICROS for _, (micros, _) in newest]


def _merge_recent(
    columns: Columns,
    fresh: Sequence[AcceptedEvent],
    spec: DatasetSpec,
    *,
    newest: str,
    category: Callable[[str], str],
) -> None:
    """Add events that the row does not include to its counts and its newest events."""
    types = spec.event_types
    counts = Counts(
        panes_of({name: values[0] for name, values in columns.items()}, len(types)), newest
    )
    for event in fresh:
        counts.add(event.micros, types.index(event.type), len(types))
    for name, value in count_row(counts).items():
        columns[name][0] = value
    names = (c.RECENT_ITEMS, c.RECENT_TYPES, c.RECENT_TIMES, c.RECENT_CATEGORIES)
    lists = [columns[name][0] if columns[name][0] is not None else [] for name in names]
    rows = [
        *zip(*lists, strict=True),
        *((e.item, e.type, e.micros // MICROS, category(e.item)) for e in fresh),
    ]
    rows = sorted(rows, key=lambda row: row[2])[-c.HISTORY_LENGTH :]
    for name, values in zip(names, zip(*rows, strict=True), strict=True):
        columns[name][0] = list(values)
