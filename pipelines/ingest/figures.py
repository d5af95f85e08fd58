"""Measures ingested data: the span of times, and how far log and tables meet."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from feature_repo import columns as c
from feature_repo.dataset import DatasetSpec, Users

BINS = 12
_FAR = pd.Timedelta(days=20 * 365)
_FIRST_LOGS = pd.Timestamp("1990-01-01", tz="UTC")


@dataclass
class Meeting:
    """How the users or items of the log meet those of their table.

    Attributes:
        log: how many the log has.
        unlisted: which of them are in no table, those with most events first.
        unlisted_events: how many events they have.
        table: how many the table has.
        without_events: how many of these have no event.
        example: one of the table's.

    """

    log: int
    unlisted: list[str]
    unlisted_events: int
    table: int
    without_events: int
    example: str


@dataclass
class Figures:
    """What the events and tables look like.

    Attributes:
        events: number of events.
        first, last: times of the first and the last event, ISO 8601; "" without events.
        histogram: numbers of events in equal parts of that span.
        early: how many events are of before 1990, and the first of them.
        far: how many are decades away from most others, and one of them.
        users, items: how log and tables meet; None: there is no such table.
        before_available: events before their item's ``available_from``; None: there is none.
        empty, constant: attributes without a value, or with one value only, as table.attribute.

    """

    events: int = 0
    first: str = ""
    last: str = ""
    histogram: list[int] = field(default_factory=list)
    early: int = 0
    far: int = 0
    far_example: str = ""
    users: Meeting | None = None
    items: Meeting | None = None
    before_available: int | None = None
    empty: list[str] = field(default_factory=list)
    constant: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers; ids and times of single events are left out."""
        values: dict[str, Any] = {
            "span": [self.first, self.last],
            "histogram": self.histogram,
            "before_available": self.before_available,
            "empty_attributes": self.empty,
            "constant_attributes": self.constant,
        }
        for name, meeting in (("users", self.users), ("items", self.items)):
            if meeting is not None:
                values[f"unlisted_{name}"] = len(meeting.unlisted)
                values[f"events_of_unlisted_{name}"] = meeting.unlisted_events
                values[f"{name}_without_events"] = meeting.without_events
        return values


def measure(
    spec: DatasetSpec,
    events: pd.DataFrame,
    users: pd.DataFrame | None,
    items: pd.DataFrame | None,
) -> Figures:
    """Return the figures of all events (user, item, timestamp) and of the tables."""
    figures = Figures(events=len(events))
    if len(events):
        _measure_times(figures, events[c.TIMESTAMP])
    if users is not None:
        figures.users = _meeting(events[c.USER], users[c.USER])
    if items is not None:
        figures.items = _meeting(events[c.ITEM], items[c.ITEM])
        if c.AVAILABLE_FROM in items:
            begin = events[c.ITEM].map(items.set_index(c.ITEM)[c.AVAILABLE_FROM])
            figures.before_available = int((events[c.TIMESTAMP] < begin).sum())
    for name, table, rows in (("users", spec.users, users), ("items", spec.items, items)):
        if table is not None and rows is not None and len(rows):
            _measure_attributes(figures, name, table, rows)
    return figures


def _measure_times(figures: Figures, times: pd.Series) -> None:
    first, last = times.min(), times.max()
    figures.first, figures.last = _iso(first), _iso(last)
    seconds = times.astype("datetime64[us, UTC]").astype("int64").to_numpy() / 1e6
    figures.histogram = np.histogram(seconds, bins=BINS)[0].tolist()
    figures.early = int((times < _FIRST_LOGS).sum())
    middle = pd.Timestamp(float(np.median(seconds)), unit="s", tz="UTC")
    far = times[(times - middle).abs() > _FAR]
    figures.far = len(far)
    figures.far_example = _iso(far.iloc[0]) if len(far) else ""


def _iso(moment: pd.Timestamp) -> str:
    return str(moment.strftime("%Y-%m-%dT%H:%M:%SZ"))


def _meeting(log: pd.Series, table: pd.Series) -> Meeting:
    counts = log.astype("object").value_counts()
    unlisted = counts[~counts.index.isin(table)]
    return Meeting(
        log=len(counts),
        unlisted=[str(name) for name in unlisted.index],
        unlisted_events=int(unlisted.sum()),
        table=len(table),
        without_events=int((~table.isin(counts.index)).sum()),
        example=str(table.iloc[0]) if len(table) else "",
    )


def _measure_attributes(figures: Figures, name: str, table: Users, rows: pd.DataFrame) -> None:
    for attribute in table.attributes:
        values = rows[attribute]
        if table.attributes[attribute] == "multi_categorical":
            values = values.map(lambda parts: "\x1f".join(parts) if parts else None)
        known = values.dropna()
        if not len(known):
            figures.empty.append(f"{name}.{attribute}")
        elif len(known) == len(rows) > 1 and known.nunique() == 1:
            figures.constant.append(f"{name}.{attribute}")
