"""Removed items: tombstones in Redis that all servers follow, whatever the release has."""

from __future__ import annotations

from feature_repo.stores.feature_store import redis_client
from feature_repo.workspace import Workspace
from serving.event_log.redis_stream import redis_answering
from serving.live_items.versioned import LUA_VERSION, VersionedValue

REMOVED = "funnel:items:removed"
REMOVED_VERSION = "funnel:items:removed:version"

_CHANGE = (
    LUA_VERSION
    + """
local changed = redis.call(ARGV[1], KEYS[1], ARGV[2])
if changed == 1 then next_version(KEYS[2]) end
return changed
"""
)


class RemovedItems:
    """The ids of removed items. They outlast releases, until an item is restored."""

    def __init__(self, workspace: Workspace, timeout_s: float = 0.5) -> None:
        self._redis = redis_client(workspace, timeout_s)
        self._change = self._redis.register_script(_CHANGE)
        self._ids = VersionedValue(self._redis, REMOVED_VERSION, self._read_all)

    def remove(self, item_id: str) -> bool:
        """Remove an item; return whether it was not removed already.

        Raises:
            OnlineStoreUnavailable: Redis did not answer; repeating the call is safe.

        """
        with redis_answering():
            return bool(self._change(keys=[REMOVED, REMOVED_VERSION], args=["SADD", item_id]))

    def restore(self, item_id: str) -> bool:
        """Restore a removed item; return whether it was removed.

        Raises:
            OnlineStoreUnavailable: Redis did not answer; repeating the call is safe.

        """
        with redis_answering():
            return bool(self._change(keys=[REMOVED, REMOVED_VERSION], args=["SREM", item_id]))

    @property
    def missing(self) -> bool:
        """Whether Redis knew of no removal when it was last asked."""
        return self._ids.missing

    def check(self) -> None:
        """Ask Redis whether it knows of any.

        Raises:
            OnlineStoreUnavailable: Redis did not answer.

        """
        with redis_answering():
            self._ids.check()

    def poll(self) -> set[str] | None:
        """Return all ids if they have changed; see ``VersionedValue``."""
        return self._ids.poll()

    def _read_all(self) -> set[str]:
        members: set[bytes] = self._redis.smembers(REMOVED)  # type: ignore[assignment]
        return {item.decode(errors="surrogateescape") for item in members}
