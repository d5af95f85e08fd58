"""Items that came after the release: kept in Redis, from where all servers take them up."""

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
from serving.live_items.removed import REMOVED, REMOVED_VERSION
from serving.releases.delta import AddedItem

_ADDED, _VERSION = "funnel:items:added", "funnel:items:added:version"

# An item that is added is one that is to be shown, so a removal ends with it. What it was first
# added at stays.
_ADD = """
local changed = redis.call('SREM', KEYS[3], ARGV[1])
if changed == 1 then redis.call('INCR', KEYS[4]) end
local before, since = redis.call('HGET', KEYS[1], ARGV[1]), ARGV[2]
if before then
  local border = string.find(before, '|', 1, true)
  if string.sub(before, border + 1) == ARGV[3] then return changed end
  since = string.sub(before, 1, border - 1)
end
redis.call('HSET', KEYS[1], ARGV[1], since .. '|' .. ARGV[3])
redis.call('INCR', KEYS[2])
return 1
"""


class BadItem(ValueError):
    """An item cannot be added as it is; the message says what is wrong with it."""


class ReleasedItem(ValueError):
    """The item is one of the release, which alone says what it is like."""


class NoSpareRow(FunnelError):
    """The release has no place for another item."""


class AddedItems:
    """The added items. They outlast releases: one that has the item itself serves its own row."""

    def __init__(self, workspace: Workspace, timeout_s: float = 0.5) -> None:
        self._redis = redis_client(workspace, timeout_s)
        self._add = self._redis.register_script(_ADD)
        self._seen: bytes | None = None

    def add(
        self,
        item_id: str,
        attributes: Mapping[str, Any],
        available_from: float | None,
        available_until: float | None,
        now: float,
    ) -> bool:
        """Add an item, or change one that was added, and take its removal back; return whether that changed anything.

        Args:
            item_id: which one.
            attributes: as given; those that fit the items of a release.
            available_from: epoch seconds; None: from the moment at which it was first added.
            available_until: epoch seconds; None: always.
            now: epoch seconds.

        Raises:
            OnlineStoreUnavailable: Redis did not answer; repeating the call is safe.

        """
        record = {"attributes": attributes, "from": available_from, "until": available_until}
        body = orjson.dumps(record, option=orjson.OPT_SORT_KEYS)
        keys = [_ADDED, _VERSION, REMOVED, REMOVED_VERSION]
        with redis_answering():
            return bool(self._add(keys=keys, args=[item_id, f"{now:.3f}", body]))

    def forget(self, item_ids: Sequence[str]) -> None:
        """Let go of items that nobody serves from here any more; a Redis that does not answer keeps them."""
        if item_ids:
            with suppress(redis.RedisError, OSError):
                self._redis.hdel(_ADDED, *item_ids)

    def changed(self) -> dict[str, AddedItem] | None:
        """Return all added items, oldest first, if they are others than when this was last asked.

        None: the same, or Redis does not say. A Redis that was emptied takes nothing away until the
        next start.
        """
        try:
            version: bytes | None = self._redis.get(_VERSION)  # type: ignore[assignment]
            if version is None or version == self._seen:
                return None
            found: dict[bytes, bytes] = self._redis.hgetall(_ADDED)  # type: ignore[assignment]
        except (redis.RedisError, OSError):
            return None
        self._seen = version
        dated = sorted((*value.split(b"|", 1), item) for item, value in found.items())
        return {
            item.decode(errors="surrogateescape"): _read(since, body) for since, body, item in dated
        }


def _read(since: bytes, body: bytes) -> AddedItem:
    record, added_at = json.loads(body), float(since)
    begin = added_at if record["from"] is None else record["from"]
    return AddedItem(record["attributes"], begin, record["until"], added_at)
