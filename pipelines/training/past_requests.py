"""Past events as requests: who would have asked when, and what the right answer was."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from feature_repo import columns as c
from feature_repo.views import ONLINE_USERS
from pipelines.features.point_in_time import DAY_S, PointInTime, Times
from pipelines.training.split import epoch_seconds
from serving.recommender.codec import Codec
from serving.recommender.item_table import Activity, ItemTable
from serving.recommender.users import Columns, UserBatch, UserReader

BATCH = 64


@dataclass(frozen=True)
class Requests:
    """``n`` events in order of time: user ids, item codes, types and moments (epoch seconds)."""

    user: npt.NDArray[Any]
    item: npt.NDArray[np.int32]
    type: npt.NDArray[Any]
    time: Times

    def __len__(self) -> int:
        return len(self.user)

    def __getitem__(self, rows: Any) -> Requests:
        return Requests(self.user[rows], self.item[rows], self.type[rows], self.time[rows])


def requests_from(events: pd.DataFrame, codec: Codec) -> Requests:
    """Return events as requests."""
    return Requests(
        events[c.USER].to_numpy(dtype=object),
        codec.items.encode(events[c.ITEM].tolist()),
        events[c.TYPE].to_numpy(dtype=object),
        epoch_seconds(events[c.TIMESTAMP]),
    )


class Past(NamedTuple):
    """Some of a user's events: epoch seconds, item codes, and types by their place in the spec."""

    time: Times
    item: npt.NDArray[np.int32]
    kind: npt.NDArray[np.int64]


class Journal:
    """What each user did, in order of time: what a stream would have known, and what came next."""

    def __init__(self, events: pd.DataFrame, codec: Codec) -> None:
        self.types = codec.spec.event_types
        time = epoch_seconds(events[c.TIMESTAMP])
        item = codec.items.encode(events[c.ITEM].tolist())
        self._positive = np.array([name in codec.spec.positive_types for name in self.types])
        kind = (
            events[c.TYPE]
            .map({name: n for n, name in enumerate(self.types)})
            .to_numpy(dtype=np.int64)
        )
        rows = events.groupby(c.USER, sort=False).indices
        self._of_user = {
            user: (time[where], item[where], kind[where]) for user, where in rows.items()
        }

    def between(self, user: str, start: float, stop: float) -> Past:
        """Return a user's events in ``[start, stop)``, oldest first."""
        time, item, kind = self._of_user[user]
        first, last = np.searchsorted(time, [start, stop])
        return Past(time[first:last], item[first:last], kind[first:last])

    def seen(self, user: str, before: float) -> dict[str, npt.NDArray[np.int32]]:
        """Return the items a user had met strictly before a moment, by event type."""
        past = self.between(user, -np.inf, before)
        return {name: past.item[past.kind == n] for n, name in enumerate(self.types)}

    def taken_up(self, user: str, before: float) -> npt.NDArray[np.int32]:
        """Return the items of a user's positive events strictly before a moment, oldest first, repeats included."""
        past = self.between(user, -np.inf, before)
        return past.item[self._positive[past.kind]]


def replay(
    requests: Requests, features: PointInTime, codec: Codec, items: ItemTable, journal: Journal
) -> Iterator[tuple[npt.NDArray[np.int64], UserBatch, ItemTable]]:
    """Yield requests in small batches with user features and item table as they were at that moment.

    Item counts are those of the day's midnight, as the daily job would have written them; users'
    histories and what they have seen are up to just before each request, as a stream keeps them.
    """
    reader = UserReader(codec)
    for rows, columns, table in replay_columns(requests, features, codec, items):
        yield rows, users_at(reader, columns, requests[rows], journal), table


def replay_columns(
    requests: Requests, features: PointInTime, codec: Codec, items: ItemTable
) -> Iterator[tuple[npt.NDArray[np.int64], Columns, ItemTable]]:
    """Yield the same batches with the users' features by column, not yet read as arrays."""
    days = (requests.time // DAY_S).astype(np.int64)
    tables = _day_tables(features, codec, items, np.unique(days))
    for rows, columns in features.users(ONLINE_USERS, requests.user, requests.time):
        start, stop = rows.start, rows.stop
        while start < stop:
            end = min(stop, start + BATCH, int(np.searchsorted(days, days[start], side="right")))
            part = slice(start - rows.start, end - rows.start)
            columns_part = {name: values[part] for name, values in columns.items()}
            yield np.arange(start, end), columns_part, tables(int(days[start]))
            start = end


def users_at(
    reader: UserReader, columns: Columns, requests: Requests, journal: Journal
) -> UserBatch:
    """Return the users of requests with these features and with all that they had seen by then."""
    pairs = zip(requests.user, requests.time, strict=True)
    return replace(
        reader.read(columns, requests.time), seen=[journal.seen(user, time) for user, time in pairs]
    )


class _day_tables:  # noqa: N801 - used as a function
    """The item table of each day, days asked for in ascending order."""

    def __init__(
        self, features: PointInTime, codec: Codec, items: ItemTable, days: npt.NDArray[np.int64]
    ) -> None:
        self._stream: Iterator[tuple[int, Activity]] = features.item_activity(codec, days)
        self._items = items
        self._day = -1

    def __call__(self, day: int) -> ItemTable:
        while self._day < day:
            self._day, activity = next(self._stream)
            self._items = self._items.with_activity(activity)
        return self._items
