"""Which event is which: ids, rows that are told twice, and the order among equal times.

Two rows are one event if all their fields are equal. Where the log has an id of its own, it is
kept; where rows that differ share one (an order's, a session's), it names no event: the later rows
get an id that their fields follow.

All later stages order a user's events of one time by id. So where ids would not sort in the order
of the file, they begin with their place: eight digits and a tilde.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import pandas as pd

from feature_repo import columns as c

_PLACE = 8
"""Digits of a place."""

Stored = Callable[[set[str]], pd.DataFrame]
"""Returns the stored events that have one of these ids, with their times as in their files."""


def _nothing_stored(_ids: set[str]) -> pd.DataFrame:
    return pd.DataFrame(columns=[c.EVENT_ID, c.USER, c.ITEM, c.TYPE, c.TIMESTAMP, c.VALUE])


@dataclass
class KnownEvents:
    """The events so far: their ids, and on demand their fields."""

    ids: set[str] = field(default_factory=set)
    stored: Stored = _nothing_stored
    this_run: list[pd.DataFrame] = field(default_factory=list)

    def fields_of(self, ids: set[str]) -> dict[str, set[str]]:
        """Return the hashes of the fields of the events with these ids, by id."""
        hashes: dict[str, set[str]] = {}
        frames = [self.stored(ids), *self.this_run]
        for frame in frames:
            rows = frame[frame[c.EVENT_ID].isin(ids)]
            for event_id, digest in zip(rows[c.EVENT_ID], hashed_fields(rows), strict=True):
                hashes.setdefault(event_id, set()).add(digest)
        return hashes

    def add(self, events: pd.DataFrame) -> None:
        """Remember events of this run."""
        self.ids.update(events[c.EVENT_ID])
        self.this_run.append(events)


class Identified(NamedTuple):
    """Rows by their identity: event ids, which are told again, how many share an id, and one."""

    ids: pd.Series
    repeated: pd.Series
    shared: int
    example: str = ""


def identify(events: pd.DataFrame, known: KnownEvents, *, own_ids: bool) -> Identified:
    """Return the ids of events, and which of them are events that are known already."""
    if not own_ids:
        ids = hashed_fields(events)
        return Identified(ids, ids.duplicated() | ids.isin(known.ids), 0)
    ids = events[c.EVENT_ID].astype("object")
    again = ids.duplicated(keep=False) | ids.isin(known.ids)
    repeated = pd.Series(False, index=ids.index)
    if not again.any():
        return Identified(ids, repeated, 0)

    # Rows with an id that others have: the first keeps it, others that differ get one of their own.
    rows = events[again]
    told = known.fields_of({event_id for event_id in rows[c.EVENT_ID] if event_id in known.ids})
    shared: list[str] = []
    for row, event_id, digest in zip(
        rows.index, rows[c.EVENT_ID], hashed_fields(rows), strict=True
    ):
        before = told.setdefault(event_id, set())
        own = f"{event_id}:{digest}"
        if digest in before or own in known.ids:
            repeated[row] = True
        elif before:
            ids[row] = own
            shared.append(str(event_id))
        before.add(digest)
    return Identified(ids, repeated, len(shared), shared[0] if shared else "")


def hashed_fields(events: pd.DataFrame) -> pd.Series:
    """Return a hash of the fields of each event."""
    micros = events[c.TIMESTAMP].astype("datetime64[us, UTC]").astype("int64")
    parts = zip(
        events[c.USER], events[c.ITEM], events[c.TYPE], micros, events[c.VALUE], strict=True
    )
    ids = [
        hashlib.blake2b("\x1f".join(map(str, part)).encode(), digest_size=10).hexdigest()
        for part in parts
    ]
    return pd.Series(ids, index=events.index, dtype="object")


def in_file_order(events: pd.DataFrame) -> pd.DataFrame:
    """Return events with ids that keep their order among a user's equal times."""
    ties = events[events.duplicated([c.USER, c.TIMESTAMP], keep=False)]
    if not len(ties):
        return events
    group = ties.groupby([c.USER, c.TIMESTAMP], sort=False).ngroup()
    place = ties.groupby(group, sort=False).cumcount()
    ids = ties[c.EVENT_ID].astype("object")
    ordered = pd.DataFrame({"group": group, "place": place, "id": ids})
    by_id = ordered.sort_values(["group", "id"], kind="stable")
    misplaced = by_id.loc[by_id["place"] != by_id.groupby("group").cumcount(), "group"].unique()
    moved = ordered[ordered["group"].isin(misplaced)]
    ids = events[c.EVENT_ID].astype("object").copy()
    ids[moved.index] = [
        f"{number:0{_PLACE}d}~{event_id}"
        for number, event_id in zip(moved["place"], moved["id"], strict=True)
    ]
    return events.assign(**{c.EVENT_ID: ids})


def own_id(event_id: str) -> str:
    """Return an event's id without the place that ``in_file_order`` put before it."""
    placed = event_id[_PLACE : _PLACE + 1] == "~" and event_id[:_PLACE].isdigit()
    return event_id[_PLACE + 1 :] if placed else event_id
