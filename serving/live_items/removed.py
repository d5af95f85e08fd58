"""Items that may not be shown any more, whatever the release says: tombstones in Redis that all servers follow."""

from __future__ import annotations

import redis

from feature_repo.stores.feature_store import redis_client
from feature_repo.workspace import Workspace
from serving.event_log.redis_stream import redis_answering

REMOVED, REMOVED_VERSION = "funnel:items:removed", "funnel:items:removed:version"

_CHANGE = """
local changed = redis.call(ARGV[1], KEYS[1], ARGV[2])
if changed == 1 then redis.call('INCR', KEYS[2]) end
return changed
"""


class RemovedItems:
    """The ids of removed items. They outlast releases: whoever puts an item back says so."""

    def __init__(self, workspace: Workspace, timeout_s: float = 0.5) -> None:
        self._redis = redis_client(workspace, timeout_s)
        self._change = self._redis.register_script(_CHANGE)
        self._seen: bytes | None = None

    def remove(self, item_id: str) -> bool:
        """Remove an item and return whether it was there.

        Raises:
            OnlineStoreUnavailable: Redis did not answer; repeating the call is safe.

        """
        with redis_answering():
            return bool(self._change(keys=[REMOVED, REMOVED_VERSION], args=["SADD", item_id]))

    def restore(self, item_id: str) -> bool:
        """Take a removal back and return whether there was one.

        Raises:
            OnlineStoreUnavailable: Redis did not answer; repeating the call is safe.

        """
        with redis_answering():
            return bool(self._change(keys=[REMOVED, REMOVED_VERSION], args=["SREM", item_id]))

    def changed(self) -> set[str] | None:
        """Return the ids if they are others than when this was last asked; None: the same, or Redis does not say.

        A Redis that knows of no removal ever was emptied: what is removed stays removed until the
        next start.
        """
        try:
            version: bytes | None = self._redis.get(REMOVED_VERSION)  # type: ignore[assignment]
            if version is None or version == self._seen:
                return None
            found: set[bytes] = self._redis.smembers(REMOVED)  # type: ignore[assignment]
        except (redis.RedisError, OSError):
            return None
        self._seen = version
        return {item.decode(errors="surrogateescape") for item in found}
