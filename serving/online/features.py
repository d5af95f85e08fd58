"""Online features through Feast from Redis, none older than its view's TTL, and the events that came in since."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import redis
from feast import FeatureService, FeatureStore

from feature_repo import columns as c
from feature_repo.errors import FunnelError
from feature_repo.events.log_names import recent_key
from feature_repo.stores.feature_store import feature_store, redis_client
from feature_repo.stores.online_store import RowReader
from feature_repo.stores.pipelined_reads import PipelinedReads
from feature_repo.views import ONLINE_USERS, USER_RECENT_SCHEMA
from feature_repo.workspace import Workspace
from serving.online.overlay import merge_overlay, parse_overlay
from serving.recommender.codec import Codec
from serving.recommender.item_table import Activity, ItemTable, activity_from

_TIMEOUT_S = 0.5
_ITEMS_PER_READ = 500

ObserveAge = Callable[[str, float], None]
"""Called with a view and the age of one of its rows in seconds."""

Stamps = dict[str, list[int | None]]
"""The time of each entity's row of a view in whole epoch seconds; None: there is no row."""


class OnlineStoreUnavailable(FunnelError):
    """Redis did not answer in time."""


@dataclass(frozen=True)
class UserFeatures:
    """One user's feature row.

    ``known`` is False if the store has nothing of them, ``position`` the newest log entry that the
    row includes, ``row_position`` that of the row as it was stored, before the overlay was merged
    into it, ``stale`` the views whose values were too old and count as missing.
    """

    columns: dict[str, list[Any]]
    known: bool
    position: str | None = None
    row_position: str | None = None
    stale: tuple[str, ...] = ()


class Reader:
    """Feast's online read of some features, with each view's TTL enforced, which Feast leaves to its callers."""

    def __init__(
        self, store: FeatureStore, features: FeatureService | list[str], observe_age: ObserveAge
    ) -> None:
        """Find out the views behind a feature service or some ``view:feature``, and the features of each."""
        self._store, self._features, self._observe_age = store, features, observe_age
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

    def read(
        self, rows: list[dict[str, Any]], now: float
    ) -> tuple[dict[str, list[Any]], list[tuple[str, ...]]]:
        """Return feature columns of some entities, and for each entity the views that were past their TTL.

        Raises:
            OnlineStoreUnavailable: Redis did not answer.

        """
        columns, stamps = self.fetch(rows)
        return columns, self.expire(columns, stamps, now)

    def fetch(self, rows: list[dict[str, Any]]) -> tuple[dict[str, list[Any]], Stamps]:
        """Return feature columns of some entities as they are stored, however old, and how old they are.

        Raises:
            OnlineStoreUnavailable: Redis did not answer.

        """
        try:
            response = self._store.get_online_features(features=self._features, entity_rows=rows)
        except (redis.RedisError, OSError) as error:
            raise OnlineStoreUnavailable(str(error)) from error
        columns: dict[str, list[Any]] = response.to_dict()
        place = {name: n for n, name in enumerate(response.proto.metadata.feature_names.val)}
        stamps: Stamps = {}
        for view, names in self.names.items():
            moments = enumerate(response.proto.results[place[names[0]]].event_timestamps)
            stamps[view] = [
                None
                if stamp.seconds == 0 and all(columns[name][row] is None for name in names)
                else stamp.seconds
                for row, stamp in moments
            ]
        return columns, stamps

    def expire(
        self, columns: dict[str, list[Any]], stamps: Stamps, now: float
    ) -> list[tuple[str, ...]]:
        """Take values out of ``columns`` that are past their view's TTL, and return each entity's such views."""
        stale: list[tuple[str, ...]] = [() for _ in next(iter(columns.values()))]
        for view, names in self.names.items():
            ttl = (self.views[view].ttl or timedelta(0)).total_seconds()
            for row, stamp in enumerate(stamps[view]):
                if stamp is None:
                    continue
                age = now - stamp
                self._observe_age(view, age)
                if age > ttl > 0:
                    stale[row] += (view,)
                    for name in names:
                        columns[name][row] = None
        return stale


def activity_features(codec: Codec) -> list[str]:
    """Return the names of the features that an item table's ``Activity`` is made of."""
    return [*codec.item_activity, c.FIRST_EVENT_AT, c.LAST_EVENT_AT]


def activity_reader(
    store: FeatureStore, codec: Codec, observe_age: ObserveAge = lambda _view, _age: None
) -> Reader:
    """Return the reader of items' activity."""
    return Reader(
        store, [f"item_activity:{name}" for name in activity_features(codec)], observe_age
    )


def user_reader(store: FeatureStore, observe_age: ObserveAge = lambda _view, _age: None) -> Reader:
    """Return the reader of the users' features that recommendations are made from."""
    return Reader(store, store.get_feature_service(ONLINE_USERS), observe_age)


def whole_user_reader(
    store: FeatureStore, observe_age: ObserveAge = lambda _view, _age: None
) -> Reader:
    """Return the reader of all that is known of users, with what no model reads."""
    views = user_reader(store).names | {"user_recent": list(USER_RECENT_SCHEMA)}
    return Reader(
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
        """``timeout_s``: how long one user's read may take; reads of many have half a second a call."""
        self._codec = codec = items.codec
        self._category = items.main_category
        self._store = feature_store(workspace, timeout_s=_TIMEOUT_S)
        self._users, self._whole = (
            make(self._store, observe_age) for make in (user_reader, whole_user_reader)
        )
        self.row_reader, self._whole_row = (
            RowReader(self._store.config, c.USER, reader.names)
            for reader in (self._users, self._whole)
        )
        self._items = activity_reader(self._store, codec, observe_age)
        self._item_row = RowReader(self._store.config, c.ITEM, self._items.names)
        self._redis, self._many = (
            redis_client(workspace, timeout_s),
            redis_client(workspace, _TIMEOUT_S),
        )
        self._read = PipelinedReads(self._redis)

    def with_items(self, items: ItemTable) -> OnlineFeatures:
        """Return the same reads for a release with more items."""
        made = copy(self)
        made._codec, made._category = items.codec, items.main_category
        return made

    def user(self, user_id: str, now: float, *, whole: bool = False) -> UserFeatures:
        """Return a user's features at a moment, as ``users`` does.

        Raises:
            OnlineStoreUnavailable: Redis did not answer.

        """
        return self.users([user_id], now, whole=whole)[0]

    def users(
        self, user_ids: Sequence[str], now: float, *, whole: bool = False
    ) -> list[UserFeatures]:
        """Return many users' features with every accepted event in them, streamed or not, in one trip to Redis.

        Args:
            user_ids: whose.
            now: epoch seconds.
            whole: also those that no model reads.

        Raises:
            OnlineStoreUnavailable: Redis did not answer.

        """
        reader, row = (self._whole, self._whole_row) if whole else (self._users, self.row_reader)
        commands: list[tuple[Any, ...]] = []
        for user_id in user_ids:
            # The overlay first: what the stream takes from it in between is in the row as well, and
            # counts once.
            commands.append(("LRANGE", recent_key(user_id), 0, -1))
            commands.append(("HMGET", row.key(user_id), *row.fields))
        try:
            found = self._read(commands)
        except (redis.RedisError, OSError) as error:
            raise OnlineStoreUnavailable(str(error)) from error
        rows = zip(user_ids, found[::2], found[1::2], strict=True)
        return [
            self._features(user_id, entries, row.decode(values), reader, now)
            for user_id, entries, values in rows
        ]

    def _features(
        self,
        user_id: str,
        entries: list[bytes],
        decoded: tuple[dict[str, Any], dict[str, int | None]],
        reader: Reader,
        now: float,
    ) -> UserFeatures:
        row, stamps = decoded
        columns: dict[str, list[Any]] = {name: [value] for name, value in row.items()}
        row_position = row[c.POSITION]
        known = any(value is not None for value in row.values())
        columns[c.USER] = [user_id]
        stale = reader.expire(columns, {view: [stamp] for view, stamp in stamps.items()}, now)[0]
        position = merge_overlay(columns, parse_overlay(entries), self._codec.spec, self._category)
        return UserFeatures(
            columns, known or bool(entries) or bool(stale), position, row_position, stale
        )

    def item_activity(self, now: float) -> Activity:
        """Return all items' activity as it stands in the online store; what is past its TTL is missing.

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
        return activity_from(columns, self._codec)

    def _activity(self, ids: Sequence[str], now: float) -> dict[str, list[Any]]:
        with self._many.pipeline(transaction=False) as pipe:
            for item in ids:
                pipe.hmget(self._item_row.key(item), self._item_row.fields)  # type: ignore[arg-type]  # it takes bytes
            try:
                rows = [self._item_row.decode(values) for values in pipe.execute()]
            except (redis.RedisError, OSError) as error:
                raise OnlineStoreUnavailable(str(error)) from error
        columns = {name: [row[name] for row, _ in rows] for name in rows[0][0]}
        stamps = {view: [found[view] for _, found in rows] for view in self._items.views}
        self._items.expire(columns, stamps, now)
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
        *codec.user_activity,
        c.FIRST_EVENT_AT,
        c.LAST_EVENT_AT,
    ]
    return {c.USER: [user_id], **{name: [None] for name in names}}


def concat_rows(rows: Sequence[dict[str, list[Any]]]) -> dict[str, list[Any]]:
    """Return feature rows of one user each as one table; what a row does not have is missing."""
    if len(rows) == 1:
        return rows[0]
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row[name][0] if name in row else None for row in rows] for name in names}
