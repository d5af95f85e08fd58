"""Online features from Redis through Feast, within their TTL, with the newest events merged in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import redis
from feast import FeatureService, FeatureStore

from feature_repo import columns as c
from feature_repo.aggregates.definition import AggregateView
from feature_repo.aggregates.reading import EventReader
from feature_repo.aggregates.state import values_of
from feature_repo.declarations.aggregate_views import computed_as_of, definition_of
from feature_repo.declarations.views import ONLINE_USERS
from feature_repo.errors import FunnelError
from feature_repo.events.log_names import recent_key
from feature_repo.stores.feature_store import feature_store, redis_client
from feature_repo.stores.online_store import RowReader
from feature_repo.stores.pipelined_reads import PipelinedReads
from feature_repo.units import MICROS
from feature_repo.workspace import Workspace
from serving.online.overlay import Overlay, parse_overlay
from serving.recommender.codec import Codec
from serving.recommender.item_attributes import attributes_from
from serving.recommender.item_table import Activity, ItemTable, activity_from

_TIMEOUT_S = 0.5
_ITEMS_PER_READ = 500

ObserveAge = Callable[[str, float], None]
"""Called with a view and the age of one of its rows in seconds."""

RowTimes = dict[str, list[int | None]]
"""The time of each entity's row of a view in whole epoch seconds; None: there is no row."""


class OnlineStoreUnavailable(FunnelError):
    """Redis did not answer in time."""


@dataclass(frozen=True)
class UserFeatures:
    """One user's feature row.

    Attributes:
        columns: feature values by name, a list of one each.
        known: whether the store has anything of the user.
        position: the newest log entry that the row includes.
        row_position: the newest log entry of the stored row, before the overlay was merged into it.
        stale: the views whose values were past their TTL and count as missing.
        gone: features that the release reads and that are registered no more.

    """

    columns: dict[str, list[Any]]
    known: bool
    position: str | None = None
    row_position: str | None = None
    stale: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()


class FeatureReader:
    """Reads features with Feast and enforces each view's TTL, which Feast does not."""

    def __init__(
        self, store: FeatureStore, features: FeatureService | list[str], observe_age: ObserveAge
    ) -> None:
        """``features``: a feature service, or names as ``view:feature``."""
        self._store = store
        self._features = features
        self._observe_age = observe_age
        if isinstance(features, FeatureService):
            pairs = [
                (view.name, field.name)
                for view in features.feature_view_projections
                for field in view.features
            ]
        else:
            pairs = [
                (view, name)
                for view, _, name in (reference.partition(":") for reference in features)
            ]
        views = {
            view.name: view
            for view in (*store.list_feature_views(), *store.list_stream_feature_views())
        }
        self.views = {view: views[view] for view, _ in pairs if view in views}
        self.names = {view: [name for owner, name in pairs if owner == view] for view in self.views}

    def aggregates(self) -> list[AggregateView]:
        """Return the definitions of the views whose values are computed as of a read."""
        views = self.views.values()
        return [definition_of(view) for view in views if computed_as_of(view)]

    def read(
        self, rows: list[dict[str, Any]], now: float
    ) -> tuple[dict[str, list[Any]], list[tuple[str, ...]]]:
        """Return feature columns of entities, and each entity's views that were past their TTL.

        Raises:
            OnlineStoreUnavailable: Redis did not answer.

        """
        columns, times = self.fetch(rows)
        return columns, self.expire(columns, times, now)

    def fetch(self, rows: list[dict[str, Any]]) -> tuple[dict[str, list[Any]], RowTimes]:
        """Return feature columns of entities as they are stored, and the times of their rows.

        Raises:
            OnlineStoreUnavailable: Redis did not answer.

        """
        try:
            response = self._store.get_online_features(features=self._features, entity_rows=rows)
        except (redis.RedisError, OSError) as error:
            raise OnlineStoreUnavailable(str(error)) from error
        columns: dict[str, list[Any]] = response.to_dict()
        column_of = {name: n for n, name in enumerate(response.proto.metadata.feature_names.val)}

        times: RowTimes = {}
        for view, names in self.names.items():
            stamps = response.proto.results[column_of[names[0]]].event_timestamps
            times[view] = [
                None
                if stamp.seconds == 0 and all(columns[name][row] is None for name in names)
                else stamp.seconds
                for row, stamp in enumerate(stamps)
            ]
        return columns, times

    def expire(
        self, columns: dict[str, list[Any]], times: RowTimes, now: float
    ) -> list[tuple[str, ...]]:
        """Set values of ``columns`` that are past their view's TTL to None.

        Returns:
            each entity's views of which that is so.

        """
        stale: list[tuple[str, ...]] = [() for _ in next(iter(columns.values()))]
        for view, names in self.names.items():
            ttl = (self.views[view].ttl or timedelta(0)).total_seconds()
            for row, row_time in enumerate(times[view]):
                if row_time is None:
                    continue
                age = now - row_time
                self._observe_age(view, age)
                if age > ttl > 0:
                    stale[row] += (view,)
                    for name in names:
                        columns[name][row] = None
        return stale


def activity_reader(
    store: FeatureStore, codec: Codec, observe_age: ObserveAge = lambda _view, _age: None
) -> FeatureReader:
    """Return the reader of items' activity and declared features, as far as they are registered."""
    known = registered(store)
    pairs = [*codec.built_in_activity]
    pairs += [pair for pair in codec.item_reads if pair in known]
    return FeatureReader(store, [f"{view}:{name}" for view, name in pairs], observe_age)


def registered(store: FeatureStore) -> set[tuple[str, str]]:
    """Return the views of the registry with each of their features."""
    views = (*store.list_feature_views(), *store.list_stream_feature_views())
    return {(view.name, field.name) for view in views for field in view.features}


def user_reader(
    store: FeatureStore,
    observe_age: ObserveAge = lambda _view, _age: None,
    declared: Sequence[tuple[str, str]] = (),
) -> FeatureReader:
    """Return the reader of the users' features that recommendations are made from.

    ``declared``: views and features that a release reads beside those of today's service. What is
    registered no more is left out.
    """
    service = store.get_feature_service(ONLINE_USERS)
    served = [
        (view.name, f.name) for view in service.feature_view_projections for f in view.features
    ]
    known = registered(store)
    added = [pair for pair in declared if pair in known and pair not in served]
    if not added:
        return FeatureReader(store, service, observe_age)
    return FeatureReader(store, [f"{view}:{name}" for view, name in served + added], observe_age)


def whole_user_reader(
    store: FeatureStore,
    observe_age: ObserveAge = lambda _view, _age: None,
    declared: Sequence[tuple[str, str]] = (),
) -> FeatureReader:
    """Return the reader of all user features, also of those that no model reads."""
    views = user_reader(store, declared=declared).names
    for view in store.list_stream_feature_views():
        if computed_as_of(view) and view.join_keys == [c.USER]:
            views[view.name] = [one.name for one in definition_of(view).aggregates]
    return FeatureReader(
        store, [f"{view}:{name}" for view, names in views.items() for name in names], observe_age
    )


class OnlineFeatures:
    """Reads of the online store for one release."""

    def __init__(
        self,
        workspace: Workspace,
        items: ItemTable,
        observe_age: ObserveAge = lambda _view, _age: None,
        timeout_s: float = _TIMEOUT_S,
    ) -> None:
        """``timeout_s``: of a read of users; a call that reads many items has half a second."""
        self._codec = items.codec
        self._store = feature_store(workspace, timeout_s=_TIMEOUT_S)

        declared = items.codec.user_reads
        self._users = user_reader(self._store, observe_age, declared)
        self.row_reader = self._row_reader(self._users, c.USER)
        self._whole = whole_user_reader(self._store, observe_age, declared)
        self._whole_row = self._row_reader(self._whole, c.USER)
        events = EventReader.of(items.codec.spec)
        self._overlay = Overlay(events, self._users.aggregates())
        self._whole_overlay = Overlay(events, self._whole.aggregates())

        self._items = activity_reader(self._store, items.codec, observe_age)
        read = self._users.names | self._items.names
        self._gone = tuple(
            name
            for view, name in (*declared, *items.codec.item_reads)
            if name not in read.get(view, ())
        )
        self._item_aggregates = self._items.aggregates()
        self._item_row = self._row_reader(self._items, c.ITEM)

        self._redis = redis_client(workspace, timeout_s)
        self._read = PipelinedReads(self._redis)
        self._many = redis_client(workspace, _TIMEOUT_S)

    def _row_reader(self, reader: FeatureReader, key: str) -> RowReader:
        """Return what reads rows: the features of a reader, and the states of its aggregates."""
        states = {
            view.name: [*reader.names[view.name], view.state_column] for view in reader.aggregates()
        }
        return RowReader(self._store.config, key, reader.names | states)

    def with_items(self, items: ItemTable) -> OnlineFeatures:
        """Return the same reads for a release with more items."""
        extended = copy(self)
        extended._codec = items.codec
        return extended

    def user(self, user_id: str, now: float, *, whole: bool = False) -> UserFeatures:
        """Return a user's features as of ``now`` (epoch seconds), as ``users`` does.

        Raises:
            OnlineStoreUnavailable: Redis did not answer.

        """
        return self.users([user_id], now, whole=whole)[0]

    def users(
        self, user_ids: Sequence[str], now: float, *, whole: bool = False
    ) -> list[UserFeatures]:
        """Return users' features with every accepted event, streamed or not, in one read of Redis.

        Args:
            user_ids: whose.
            now: epoch seconds.
            whole: also those that no model reads.

        Raises:
            OnlineStoreUnavailable: Redis did not answer.

        """
        reader, row, overlay = self._users, self.row_reader, self._overlay
        if whole:
            reader, row, overlay = self._whole, self._whole_row, self._whole_overlay
        commands: list[tuple[Any, ...]] = []
        for user_id in user_ids:
            # The overlay first: an event that the stream takes from it in between is then in the
            # row as well, and is counted once.
            commands.append(("LRANGE", recent_key(user_id), 0, -1))
            commands.append(("HMGET", row.key(user_id), *row.fields))
        try:
            replies = self._read(commands)
        except (redis.RedisError, OSError) as error:
            raise OnlineStoreUnavailable(str(error)) from error
        rows = zip(user_ids, replies[::2], replies[1::2], strict=True)
        return [
            self._features(
                user_id, entries, row.decode(values), reader=reader, overlay=overlay, now=now
            )
            for user_id, entries, values in rows
        ]

    def _features(
        self,
        user_id: str,
        entries: list[bytes],
        decoded: tuple[dict[str, Any], dict[str, int | None]],
        *,
        reader: FeatureReader,
        overlay: Overlay,
        now: float,
    ) -> UserFeatures:
        """Return one user's features, of their stored row and their overlay ``entries``."""
        row, times = decoded
        columns: dict[str, list[Any]] = {name: [value] for name, value in row.items()}
        columns[c.USER] = [user_id]
        known = any(value is not None for value in row.values())

        stale = reader.expire(columns, {view: [time] for view, time in times.items()}, now)[0]
        accepted = parse_overlay(entries)
        row_position, position = overlay.merge(columns, accepted, round(now * MICROS))
        return UserFeatures(
            columns=columns,
            known=known or bool(entries) or bool(stale),
            position=position,
            row_position=row_position,
            stale=stale,
            gone=self._gone,
        )

    def item_activity(self, now: float) -> Activity:
        """Return all items' activity in the online store, and attributes that have a history.

        Values past their TTL are missing.

        Raises:
            OnlineStoreUnavailable: Redis did not answer.

        """
        ids = self._codec.items.values
        parts = [
            self._activity(ids[start : start + _ITEMS_PER_READ], now)
            for start in range(0, len(ids), _ITEMS_PER_READ)
        ]
        columns = {
            name: [None, *(value for part in parts for value in part[name])] for name in parts[0]
        }
        missing = [None] * (len(ids) + 1)
        columns |= {name: missing for name in self._codec.item_activity if name not in columns}
        attributes = attributes_from(columns, self._codec)
        return replace(activity_from(columns, self._codec), attributes=attributes)

    def _activity(self, ids: Sequence[str], now: float) -> dict[str, list[Any]]:
        with self._many.pipeline(transaction=False) as pipe:
            for item in ids:
                pipe.hmget(self._item_row.key(item), self._item_row.fields)  # type: ignore[arg-type]  # it takes bytes
            try:
                rows = [self._item_row.decode(values) for values in pipe.execute()]
            except (redis.RedisError, OSError) as error:
                raise OnlineStoreUnavailable(str(error)) from error
        for row, _ in rows:
            for view in self._item_aggregates:
                row |= values_of(view, row.pop(view.state_column), round(now * MICROS))
        columns = {name: [row[name] for row, _ in rows] for name in rows[0][0]}
        times = {view: [row_times[view] for _, row_times in rows] for view in self._items.views}
        self._items.expire(columns, times, now)
        return columns

    def ping(self) -> bool:
        """Return whether Redis answers."""
        try:
            return bool(self._redis.ping())
        except (redis.RedisError, OSError):
            return False


def no_features(user_id: str, codec: Codec) -> dict[str, list[Any]]:
    """Return the feature row of a user of whom nothing is known."""
    names = [
        c.HISTORY_ITEMS,
        c.HISTORY_TIMES,
        *codec.user_counts,
        c.FIRST_EVENT_AT,
        c.LAST_EVENT_AT,
    ]
    return {c.USER: [user_id], **{name: [None] for name in names}}


def concat_rows(rows: Sequence[dict[str, list[Any]]]) -> dict[str, list[Any]]:
    """Return feature rows of one user each as one table, None where a row lacks a feature."""
    if len(rows) == 1:
        return rows[0]
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row[name][0] if name in row else None for row in rows] for name in names}
