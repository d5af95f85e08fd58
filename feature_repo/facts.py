"""Facts about recent events of a user or item: the one definition of every streaming feature.

The Spark stream, the Spark batch job and the server's overlay of events that the stream has not
processed yet fold events with this code, so a feature has one meaning.

The *facts* do not depend on the order in which events arrive: the newest events by event time, the
newest distinct positive items, and counts in panes of time. Model inputs (counts over sliding
windows, decayed trends, the session) are computed from the facts as of a request's time, so a count
shrinks as time passes without a write.

A window slides by a sixtieth of its length, its *pane*: 10 seconds, 1 minute, 24 minutes. The count
of a window at time ``t`` covers the pane of ``t`` and the 59 before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from feature_repo import columns as c
from feature_repo.aggregates.definition import AggregateView, occurrence
from feature_repo.aggregates.state import AggregateState
from feature_repo.aggregates.units import MICROS as MICROS

if TYPE_CHECKING:
    from feature_repo.dataset import DatasetSpec

PANES = 60
"""Panes in a window."""

PANE_S = {"10m": 10, "1h": 60, "24h": 1_440}
"""Length of a pane of each window, seconds."""

HALF_LIFE_PANES = 15
"""The age at which an event counts half in the trend of a window: a quarter of the window."""

SESSION_GAP_S = 1_800
"""A pause of more than half an hour ends a session (the convention of web analytics)."""


class Event(NamedTuple):
    """An event of a key: time in microseconds, id, item, index of its type in the spec, value."""

    micros: int
    event_id: str
    item: str
    kind: int
    value: float | None = None


class EventKinds(NamedTuple):
    """The event types in the spec's order: names, and whether each enters the history."""

    names: Sequence[str]
    positive: Sequence[bool]

    @classmethod
    def of(cls, spec: DatasetSpec) -> EventKinds:
        """Return those of a data set."""
        names = spec.event_types
        return cls(names, [spec.events.types[name].positive for name in names])


Panes = dict[int, list[int]]
"""Counts by type in each pane, by the pane's number since the epoch."""


@dataclass
class Counts:
    """Counts of a key's events by pane of each window, up to and including a log position.

    ``aggregates``: the states of the key's declared views.
    """

    panes: list[Panes] = field(default_factory=lambda: [{} for _ in PANE_S])
    position: str = "0-0"
    aggregates: list[AggregateState] = field(default_factory=list)

    def fold(self, events: Sequence[Event], kinds: EventKinds) -> None:
        """Add events, in any order; those of positive types enter a user's history."""
        for event in events:
            self.add(event.micros, event.kind, len(kinds.names))
        if self.aggregates:
            occurrences = [
                occurrence(
                    e.micros,
                    e.event_id,
                    kinds.names[e.kind],
                    value=e.value,
                    others={c.ITEM: e.item},
                )
                for e in events
            ]
            for state in self.aggregates:
                state.add(occurrences)

    def add(self, micros: int, kind: int, kinds: int) -> None:
        """Count an event; ``kinds`` is the number of event types."""
        second = micros // MICROS
        for panes, length in zip(self.panes, PANE_S.values(), strict=True):
            pane = second // length
            if pane in panes:
                panes[pane][kind] += 1
            elif pane > max(panes, default=pane) - PANES:
                panes[pane] = [int(other == kind) for other in range(kinds)]
                # Panes outside the window are dropped at once, so the facts do not depend on the
                # order of events.
                for old in [old for old in panes if old <= pane - PANES]:
                    del panes[old]


@dataclass
class UserFacts(Counts):
    """A user's counts, newest events, and newest positive event of each item."""

    events: list[Event] = field(default_factory=list)
    history: dict[str, tuple[int, str]] = field(default_factory=dict)

    def fold(self, events: Sequence[Event], kinds: EventKinds) -> None:
        """Add events, in any order; those of positive types enter the history."""
        super().fold(events, kinds)
        for event in events:
            if kinds.positive[event.kind]:
                latest = (event.micros, event.event_id)
                if latest > self.history.get(event.item, (-1, "")):
                    self.history[event.item] = latest
        self.events = sorted([*self.events, *events])[-c.HISTORY_LENGTH :]
        if len(self.history) > c.HISTORY_LENGTH:
            newest = sorted(self.history, key=self.history.__getitem__)[-c.HISTORY_LENGTH :]
            self.history = {item: self.history[item] for item in newest}


def position_key(position: str | None) -> tuple[int, int]:
    """Return a log position (``milliseconds-number``) in a form that sorts; None sorts first."""
    if not position:
        return 0, 0
    milliseconds, _, number = position.partition("-")
    return int(milliseconds), int(number or 0)


def event_micros(timestamp: float, position: str) -> int:
    """Return an event's time in microseconds, at most its arrival, which the log position gives.

    Senders' clocks may run ahead, but an event cannot arrive before it happens.
    """
    return min(round(timestamp * MICROS), position_key(position)[0] * 1_000 + 999)


def row_of(facts: Counts, types: Sequence[str], category: Callable[[str], str]) -> dict[str, Any]:
    """Return a key's features as Feast stores them: ``count_row``, and a user's histories.

    Args:
        facts: the facts of the key.
        types: the event types in the spec's order.
        category: the main category of an item, "" if it has none.

    """
    if not isinstance(facts, UserFacts):
        return count_row(facts) | aggregate_rows(facts)
    history = sorted(facts.history.items(), key=itemgetter(1))
    return {
        c.HISTORY_ITEMS: [item for item, _ in history],
        c.HISTORY_TIMES: [micros // MICROS for _, (micros, _) in history],
        c.RECENT_ITEMS: [event.item for event in facts.events],
        c.RECENT_TYPES: [types[event.kind] for event in facts.events],
        c.RECENT_TIMES: [event.micros // MICROS for event in facts.events],
        c.RECENT_CATEGORIES: [category(event.item) for event in facts.events],
        **count_row(facts),
        **aggregate_rows(facts),
    }


def aggregate_rows(facts: Counts) -> dict[str, Any]:
    """Return the values and states of a key's declared views as of its newest log entry."""
    arrived = position_key(facts.position)[0] * 1_000 + 999
    rows: dict[str, Any] = {}
    for state in facts.aggregates:
        state.position = facts.position
        rows |= state.row(arrived)
    return rows


def count_row(facts: Counts) -> dict[str, Any]:
    """Return the pane columns (flat: pane, then its counts by type) and the position of a key."""
    row: dict[str, Any] = {
        c.panes(window): [number for pane in sorted(counts) for number in (pane, *counts[pane])]
        for window, counts in zip(PANE_S, facts.panes, strict=True)
    }
    return {**row, c.POSITION: facts.position}


def panes_of(row: dict[str, Any], kinds: int) -> list[Panes]:
    """Return the panes of a feature row; a missing value is no pane."""
    width = kinds + 1
    panes: list[Panes] = []
    for window in PANE_S:
        flat = row.get(c.panes(window))
        flat = [] if flat is None else list(flat)
        panes.append({flat[n]: flat[n + 1 : n + width] for n in range(0, len(flat), width)})
    return panes


def counts_at(time: float, panes: Sequence[Panes], kinds: int) -> list[list[int]]:
    """Return the counts of each window at a time (epoch seconds), by type."""
    counts = []
    for window, length in zip(panes, PANE_S.values(), strict=True):
        last = int(time // length)
        inside = [window[pane] for pane in window if last - PANES < pane <= last]
        counts.append([sum(pane[kind] for pane in inside) for kind in range(kinds)])
    return counts


def trends_at(time: float, panes: Sequence[Panes]) -> list[float]:
    """Return the decayed number of events in each window at a time (epoch seconds)."""
    trends = []
    for window, length in zip(panes, PANE_S.values(), strict=True):
        last = int(time // length)
        ages = (
            (last - pane, sum(window[pane]))
            for pane in sorted(window)
            if last - PANES < pane <= last
        )
        trends.append(float(sum(count * 0.5 ** (age / HALF_LIFE_PANES) for age, count in ages)))
    return trends


def session_at(
    time: float, times: Sequence[int], categories: Sequence[str]
) -> tuple[int, int, list[str]]:
    """Return a session's number of events, its seconds, and its categories, latest last.

    Args:
        time: epoch seconds; a session that ended before has no events.
        times: the newest events' times, ascending, epoch seconds; a session is counted among these.
        categories: their items' main categories.

    """
    start, previous = len(times), time
    while start > 0 and previous - times[start - 1] <= SESSION_GAP_S:
        start -= 1
        previous = times[start]
    if start == len(times):
        return 0, 0, []
    names = dict.fromkeys(name for name in reversed(categories[start:]) if name)
    return len(times) - start, int(times[-1] - times[start]), list(names)[::-1]


def dump(facts: Counts) -> str:
    """Return facts as JSON, the form of the stream's state."""
    value: dict[str, Any] = {
        "position": facts.position,
        "panes": [list(p.items()) for p in facts.panes],
    }
    if isinstance(facts, UserFacts):
        value["events"] = [event[:4] for event in facts.events]
        value["history"] = [(item, *latest) for item, latest in facts.history.items()]
    if facts.aggregates:
        value["aggregates"] = {s.view.name: s.sorted_panes() for s in facts.aggregates}
    return orjson.dumps(value).decode()


def load(data: str, views: Sequence[AggregateView] = ()) -> Counts:
    """Restore facts from their ``dump``: ``UserFacts`` if those were dumped, else ``Counts``.

    ``views``: the declared views of the key.
    """
    value = orjson.loads(data)
    position = value["position"]
    stored = value.get("aggregates", {})
    aggregates = [AggregateState.of(view, stored.get(view.name), position) for view in views]
    panes = [dict(pairs) for pairs in value["panes"]]  # pairs of a pane's number and its counts
    if "events" not in value:
        return Counts(panes, position, aggregates)
    history = {item: (micros, event_id) for item, micros, event_id in value["history"]}
    events = [Event(*event) for event in value["events"]]
    return UserFacts(panes, position, aggregates, events, history)


def user_features_at(time: float, row: dict[str, Any], types: Sequence[str]) -> dict[str, Any]:
    """Return sliding counts by type and the session of a ``user_recent`` row.

    ``time``: epoch seconds.
    """
    times, categories = row.get(c.RECENT_TIMES), row.get(c.RECENT_CATEGORIES)
    session = session_at(
        time, () if times is None else times, () if categories is None else categories
    )
    names = (c.SESSION_EVENTS, c.SESSION_SECONDS, c.SESSION_CATEGORIES)
    panes = panes_of(row, len(types))
    return {**_counts_by_name(time, panes, types), **dict(zip(names, session, strict=True))}


def item_features_at(time: float, row: dict[str, Any], types: Sequence[str]) -> dict[str, Any]:
    """Return sliding counts by type and decayed trends of an ``item_recent`` row.

    ``time``: epoch seconds.
    """
    panes = panes_of(row, len(types))
    trends = zip(map(c.trend, PANE_S), trends_at(time, panes), strict=True)
    return {**_counts_by_name(time, panes, types), **dict(trends)}


def _counts_by_name(time: float, panes: Sequence[Panes], types: Sequence[str]) -> dict[str, int]:
    counts = zip(PANE_S, counts_at(time, panes, len(types)), strict=True)
    return {
        f"{kind}_count_{window}": n
        for window, of_kind in counts
        for kind, n in zip(types, of_kind, strict=True)
    }


def user_sliding(inputs: dict[str, list[Any]], types: Sequence[str]) -> dict[str, list[Any]]:
    """Return ``user_features_at`` of many rows, as columns: Feast's on-demand view."""
    return _by_column(user_features_at, inputs, types)


def item_sliding(inputs: dict[str, list[Any]], types: Sequence[str]) -> dict[str, list[Any]]:
    """Return ``item_features_at`` of many rows, as columns: Feast's on-demand view."""
    return _by_column(item_features_at, inputs, types)


def _by_column(
    features_at: Callable[[float, dict[str, Any], Sequence[str]], dict[str, Any]],
    inputs: dict[str, list[Any]],
    types: Sequence[str],
) -> dict[str, list[Any]]:
    rows = [dict(zip(inputs, values, strict=True)) for values in zip(*inputs.values(), strict=True)]
    features = [features_at(row[c.REQUEST_TIME], row, types) for row in rows]
    return {name: [of_row[name] for of_row in features] for name in features[0]}
