"""Items added after the release, kept in Redis, from where all servers read them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import orjson
import redis

from feature_repo.errors import FunnelError
from feature_repo.stores.feature_store import redis_client
from feature_repo.workspace import Workspace
from serving.event_log.redis_stream import redis_answering
from serving.live_items.journal import Decisions
from serving.live_items.removed import REMOVED, REMOVED_VERSION
from serving.live_items.versioned import LUA_VERSION, VersionedValue
from serving.releases.delta import AddedItem

_ADDED = "funnel:items:added"
_VERSION = "funnel:items:added:version"
_KEYS = [_ADDED, _VERSION, REMOVED, REMOVED_VERSION]

# Adding an item restores it if it was removed. The time at which it was first added stays.
_ADD = (
    LUA_VERSION
    + """
local changed = redis.call('SREM', KEYS[3], ARGV[1])
if changed == 1 then next_version(KEYS[4]) end
local before, since = redis.call('HGET', KEYS[1], ARGV[1]), ARGV[2]
if before then
  local border = string.find(before, '|', 1, true)
  if string.sub(before, border + 1) == ARGV[3] then return changed end
  since = string.sub(before, 1, border - 1)
end
redis.call('HSET', KEYS[1], ARGV[1], since .. '|' .. ARGV[3])
next_version(KEYS[2])
return 1
"""
)

# ARGV: number of removed ids, these, and then id and value of each added item. What Redis has is
# newer than what is brought back.
_BRING_BACK = (
    LUA_VERSION
    + """
local removed = tonumber(ARGV[1])
for place = 2, removed + 1 do redis.call('SADD', KEYS[3], ARGV[place]) end
for place = removed + 2, #ARGV, 2 do
  redis.call('HSETNX', KEYS[1], ARGV[place], ARGV[place + 1])
end
next_version(KEYS[2])
next_version(KEYS[4])
"""
)


class BadItem(ValueError):
    """An item cannot be added as it is; the message says what is wrong with it."""


class ReleasedItem(ValueError):
    """The item is one of the release, whose attributes cannot be changed."""


class NoSpareRow(FunnelError):
    """The release has no spare row for another item."""


class AddedItems:
    """The added items. They outlast releases; a release that has the item itself serves its own."""

    def __init__(self, workspace: Workspace, timeout_s: float = 0.5) -> None:
        self._redis = redis_client(workspace, timeout_s)
        self._add = self._redis.register_script(_ADD)
        self._bring_back = self._redis.register_script(_BRING_BACK)
        self._items = VersionedValue(self._redis, _VERSION, self._read_all)

    def add(
        self,
        item_id: str,
        attributes: Mapping[str, Any],
        *,
        available_from: float | None,
        available_until: float | None,
        now: float,
    ) -> bool:
        """Add, change or restore an item; return whether that changed anything.

        Args:
            item_id: which one.
            attributes: as given; those that fit the items of a release.
            available_from: epoch seconds; None: from the time at which it was first added.
            available_until: epoch seconds; None: always.
            now: epoch seconds.

        Raises:
            OnlineStoreUnavailable: Redis did not answer; repeating the call is safe.

        """
        body = item_body(attributes, available_from, available_until)
        with redis_answering():
            return bool(self._add(keys=_KEYS, args=[item_id, f"{now:.3f}", body]))

    def bring_back(self, decisions: Decisions) -> None:
        """Write added and removed items that Redis has lost.

        Raises:
            OnlineStoreUnavailable: Redis did not answer; repeating the call is safe.

        """
        arguments: list[Any] = [len(decisions.removed), *sorted(decisions.removed)]
        for item_id, (since, body) in decisions.added.items():
            arguments += [item_id, f"{since:.3f}|{body}"]
        with redis_answering():
            self._bring_back(keys=_KEYS, args=arguments)

    @property
    def missing(self) -> bool:
        """Whether Redis knew of no added item when it was last asked."""
        return self._items.missing

    def check(self) -> None:
        """Ask Redis whether it knows of any.

        Raises:
            OnlineStoreUnavailable: Redis did not answer.

        """
        with redis_answering():
            self._items.check()

    def delete(self, item_ids: Sequence[str]) -> None:
        """Delete items that no server needs any more; if Redis does not answer, they stay."""
        if item_ids:
            with suppress(redis.RedisError, OSError):
                self._redis.hdel(_ADDED, *item_ids)

    def poll(self) -> dict[str, AddedItem] | None:
        """Return all added items, oldest first, if they have changed; see ``VersionedValue``."""
        return self._items.poll()

    def _read_all(self) -> dict[str, AddedItem]:
        values: dict[bytes, bytes] = self._redis.hgetall(_ADDED)  # type: ignore[assignment]
        dated = sorted((*value.split(b"|", 1), item) for item, value in values.items())
        return {
            item.decode(errors="surrogateescape"): _item(since, body) for since, body, item in dated
        }


def item_body(
    attributes: Mapping[str, Any], available_from: float | None, available_until: float | None
) -> str:
    """Return an added item as Redis and the journal have it."""
    record = {"attributes": attributes, "from": available_from, "until": available_until}
    return orjson.dumps(record, option=orjson.OPT_SORT_KEYS).decode()


def _item(since: bytes, body: bytes) -> AddedItem:
    record = json.loads(body)
    added_at = float(since)
    begin = added_at if record["from"] is None else record["from"]
    return AddedItem(record["attributes"], begin, record["until"], added_at)
