"""Online features through Feast from Redis, and the events that came in since."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import redis

from feature_repo import columns as c
from feature_repo.store import feature_store, redis_client
from feature_repo.workspace import Workspace
from serving.catalogue import Activity, activity_from
from serving.codec import Codec

_TIMEOUT_S = 0.5
_ITEMS_PER_READ = 500


class OnlineStoreUnavailable(RuntimeError):
    """Redis did not answer in time."""


@dataclass(frozen=True)
class UserFeatures:
    """One user's feature row; ``known`` is False if the store has nothing of them."""

    columns: dict[str, list[Any]]
    known: bool


class OnlineFeatures:
    """Reads of the online store for one release."""

    def __init__(self, workspace: Workspace, codec: Codec) -> None:
        self._codec = codec
        self._store = feature_store(workspace, timeout_s=_TIMEOUT_S)
        self._service = self._store.get_feature_service("online_user_v1")
        self._redis = redis_client(workspace, timeout_s=_TIMEOUT_S)

    def user(self, user_id: str, now: float) -> UserFeatures:
        """Return a user's features at a moment, the events accepted since the last materialization merged in.

        Raises:
            OnlineStoreUnavailable: Redis did not answer.

        """
        columns = self.users([user_id], now)
        try:
            recent: list[bytes] = self._redis.lrange(recent_key(user_id), 0, -1)  # type: ignore[assignment]
        except (redis.RedisError, OSError) as error:
            raise OnlineStoreUnavailable(str(error)) from error
        known = any(columns[name][0] is not None for name in columns if name not in _NEVER_MISSING)
        events = [json.loads(entry) for entry in reversed(recent)]
        merge_recent(columns, events, self._codec)
        return UserFeatures(columns, known or bool(events))

    def users(self, user_ids: Sequence[str], now: float) -> dict[str, list[Any]]:
        """Return the feature rows of many users, as last materialized.

        Raises:
            OnlineStoreUnavailable: Redis did not answer.

        """
        rows = [{c.USER: user_id, c.REQUEST_TIME: int(now)} for user_id in user_ids]
        try:
            columns: dict[str, list[Any]] = self._store.get_online_features(
                features=self._service, entity_rows=rows
            ).to_dict()
        except (redis.RedisError, OSError) as error:
            raise OnlineStoreUnavailable(str(error)) from error
        return columns

    def item_activity(self) -> Activity:
        """Return all items' activity as it stands in the online store.

        Raises:
            OnlineStoreUnavailable: Redis did not answer.

        """
        names = [*self._codec.item_activity, c.FIRST_EVENT_AT, c.LAST_EVENT_AT]
        references = [f"item_activity:{name}" for name in names]
        ids = self._codec.items.values
        columns: dict[str, list[Any]] = {name: [None] for name in names}
        try:
            for start in range(0, len(ids), _ITEMS_PER_READ):
                rows = [{c.ITEM: item} for item in ids[start : start + _ITEMS_PER_READ]]
                part = self._store.get_online_features(features=references, entity_rows=rows).to_dict()
                for name in names:
                    columns[name] += part[name]
        except (redis.RedisError, OSError) as error:
            raise OnlineStoreUnavailable(str(error)) from error
        return activity_from(columns, self._codec)

    def ping(self) -> bool:
        """Return whether Redis answers."""
        try:
            return bool(self._redis.ping())
        except (redis.RedisError, OSError):
            return False


_NEVER_MISSING = {c.USER, "hour_of_day", "day_of_week"}


def recent_key(user_id: str) -> str:
    """Return the Redis key of a user's accepted events, newest first."""
    return f"funnel:recent:{user_id}"


def merge_recent(columns: dict[str, list[Any]], events: Sequence[dict[str, Any]], codec: Codec) -> None:
    """Merge a user's recent events, oldest first, into the history and seen lists of their feature row.

    An item that is in the history already moves to its end, as in the offline table.
    """
    items, times = list(columns[c.HISTORY_ITEMS][0] or ()), list(columns[c.HISTORY_TIMES][0] or ())
    newest = times[-1] if times else -np.inf
    for event in events:
        item, kind = event["item_id"], event["type"]
        name = c.seen(kind)
        if name in columns:
            columns[name][0] = [*(columns[name][0] or ()), item]
        if codec.spec.events.types[kind].positive and event["timestamp"] >= newest:
            if item in items:
                place = items.index(item)
                del items[place], times[place]
            items.append(item)
            times.append(event["timestamp"])
    columns[c.HISTORY_ITEMS][0], columns[c.HISTORY_TIMES][0] = items[-c.HISTORY_LENGTH :], times[-c.HISTORY_LENGTH :]


def no_features(user_id: str, codec: Codec) -> dict[str, list[Any]]:
    """Return the feature row of a user of whom nothing is known."""
    names = [c.HISTORY_ITEMS, c.HISTORY_TIMES, *codec.user_activity, c.FIRST_EVENT_AT, c.LAST_EVENT_AT]
    return {c.USER: [user_id], **{name: [None] for name in names}}
