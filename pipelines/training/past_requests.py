"""Past events as requests: which user would have sent one when, and its right answer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from feature_repo import columns as c
from feature_repo.arrays import Float64Array, Int32Array, Int64Array
from feature_repo.declarations.views import ONLINE_USERS
from pipelines.features.point_in_time import DAY_S, PointInTime
from pipelines.training.split import epoch_seconds
from serving.recommender.codec import Codec
from serving.recommender.item_table import Activity, ItemTable
from serving.recommender.users import Columns, UserBatch, UserReader

BATCH = 64


@dataclass(frozen=True)
class Requests:
    """``n`` past events in order of time, each seen as a request that its item answers.

    Attributes:
        user: ids ``[n]``.
        item: item codes, int32 ``[n]``.
        type: event types ``[n]``.
        time: epoch seconds, float64 ``[n]``.
        context: the events' fields of context by name, objects ``[n]``; None: missing.

    """

    user: npt.NDArray[Any]
    item: Int32Array
    type: npt.NDArray[Any]
    time: Float64Array
    context: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.user)

    def __getitem__(self, rows: Any) -> Requests:
        context = {name: values[rows] for name, values in self.context.items()}
        return Requests(self.user[rows], self.item[rows], self.type[rows], self.time[rows], context)

    def context_columns(self, rows: slice) -> dict[str, list[Any]]:
        """Return the fields of the context of some requests, as feature columns."""
        return {name: values[rows].tolist() for name, values in self.context.items()}


def requests_from(events: pd.DataFrame, codec: Codec) -> Requests:
    """Return events as requests."""
    return Requests(
        events[c.USER].to_numpy(dtype=object),
        codec.items.encode(events[c.ITEM].tolist()),
        events[c.TYPE].to_numpy(dtype=object),
        epoch_seconds(events[c.TIMESTAMP]),
        context_of(events, codec.spec.context),
    )


def context_of(events: pd.DataFrame, fields: Iterable[str]) -> dict[str, npt.NDArray[Any]]:
    """Return fields of the context of ``n`` events by name, objects ``[n]``; None: missing."""
    return {
        name: events[name].astype(object).where(events[name].notna(), None).to_numpy()
        for name in fields
    }


class UserEvents(NamedTuple):
    """Some events of one user, oldest first.

    Attributes:
        time: epoch seconds, float64 ``[n]``.
        item: item codes, int32 ``[n]``.
        type: index of each event's type in the spec, int64 ``[n]``.

    """

    time: Float64Array
    item: Int32Array
    type: Int64Array


class InteractionHistory:
    """What each user did, in order of time: what a stream would have known, and what came next."""

    def __init__(self, events: pd.DataFrame, codec: Codec) -> None:
        self.types = codec.spec.event_types
        self._is_positive = np.array([name in codec.spec.positive_types for name in self.types])

        time = epoch_seconds(events[c.TIMESTAMP])
        item = codec.items.encode(events[c.ITEM].tolist())
        index = {name: number for number, name in enumerate(self.types)}
        event_type = events[c.TYPE].map(index).to_numpy(dtype=np.int64)
        rows_of_user = events.groupby(c.USER, sort=False).indices
        self._of_user = {
            user: UserEvents(time[rows], item[rows], event_type[rows])
            for user, rows in rows_of_user.items()
        }

    def between(self, user: str, start: float, stop: float) -> UserEvents:
        """Return a user's events in ``[start, stop)``."""
        events = self._of_user[user]
        first, last = np.searchsorted(events.time, [start, stop])
        return UserEvents(events.time[first:last], events.item[first:last], events.type[first:last])

    def seen(self, user: str, before: float) -> dict[str, Int32Array]:
        """Return the items of a user's events strictly before a time, by event type."""
        past = self.between(user, -np.inf, before)
        return {name: past.item[past.type == n] for n, name in enumerate(self.types)}

    def positive_items(self, user: str, before: float) -> Int32Array:
        """Return the items of a user's positive events before a time, oldest first, with repeats.

        An event at exactly that time is not included.
        """
        past = self.between(user, -np.inf, before)
        return past.item[self._is_positive[past.type]]


def replay(
    requests: Requests,
    *,
    features: PointInTime,
    codec: Codec,
    items: ItemTable,
    interactions: InteractionHistory,
) -> Iterator[tuple[Int64Array, UserBatch, ItemTable]]:
    """Yield requests in small batches with user features and item table as they were then.

    Item counts are those of the day's midnight, as the daily job would have written them; users'
    histories and what they have seen are up to just before each request, as a stream keeps them.
    """
    reader = UserReader(codec)
    for rows, columns, table in replay_columns(requests, features, codec, items):
        yield rows, users_at(reader, columns, requests[rows], interactions), table


def replay_columns(
    requests: Requests, features: PointInTime, codec: Codec, items: ItemTable
) -> Iterator[tuple[Int64Array, Columns, ItemTable]]:
    """Yield the same batches with the users' features by column, not yet read as arrays."""
    days = (requests.time // DAY_S).astype(np.int64)
    tables = _DailyItemTables(features, codec, items, np.unique(days))
    for rows, columns in features.users(ONLINE_USERS, requests.user, requests.time):
        # A batch has at most BATCH requests, all of one day.
        start, stop = rows.start, rows.stop
        while start < stop:
            end_of_day = int(np.searchsorted(days, days[start], side="right"))
            end = min(stop, start + BATCH, end_of_day)
            part = slice(start - rows.start, end - rows.start)
            columns_part = {name: values[part] for name, values in columns.items()}
            columns_part |= requests.context_columns(slice(start, end))
            yield np.arange(start, end), columns_part, tables.of(int(days[start]))
            start = end


def users_at(
    reader: UserReader, columns: Columns, requests: Requests, interactions: InteractionHistory
) -> UserBatch:
    """Return the users of requests with these features and with all that they had seen by then."""
    pairs = zip(requests.user, requests.time, strict=True)
    seen = [interactions.seen(user, time) for user, time in pairs]
    return replace(reader.read(columns, requests.time), seen=seen)


class _DailyItemTables:
    """The item table of each day; days are asked for in ascending order."""

    def __init__(
        self, features: PointInTime, codec: Codec, items: ItemTable, days: Int64Array
    ) -> None:
        self._stream: Iterator[tuple[int, Activity]] = features.item_activity(codec, days)
        self._items = items
        self._day = -1

    def of(self, day: int) -> ItemTable:
        """Return the item table as of a day's midnight (days since the epoch)."""
        while self._day < day:
            self._day, activity = next(self._stream)
            self._items = self._items.with_activity(activity)
        return self._items
