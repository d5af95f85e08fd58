"""Deduplication by Redis of events whose log is elsewhere, and their recent-events overlay.

The Redis Stream does all of it and the log in one script (``redis_stream.py``). With a log outside
of Redis a process can be killed between the steps, so an id is marked as seen only when its event
is in the log. Before that a mark may say that a process is *writing* it; such a mark expires.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from feature_repo.events.log_names import recent_key
from feature_repo.events.stored import StoredEvent, encode
from feature_repo.stores.feature_store import redis_client
from feature_repo.workspace import Workspace
from serving.event_log.port import Appended
from serving.event_log.redis_stream import (
    ID_SHARDS,
    LUA_IDS,
    RECENT_EVENTS,
    RECENT_S,
    id_digest,
    redis_answering,
)
from serving.online.features import OnlineStoreUnavailable

HELD_S = 60
"""Seconds after which a mark of being written expires: how long a sender waits after a crash."""

# ARGV: seconds to hold ids for (0: only check), then shard and digest of each.
_UNSEEN = (
    LUA_IDS
    + """
local hold, unseen = tonumber(ARGV[1]), {}
for first = 2, #ARGV, 2 do
  local seen = known(ARGV[first], ARGV[first + 1])
  local writing = 'funnel:writing:' .. ARGV[first + 1]
  if not seen and hold > 0 and redis.call('EXISTS', writing) == 1 then return {-1} end
  unseen[#unseen + 1] = seen and 0 or 1
end
for index = 1, #unseen do
  if unseen[index] == 1 and hold > 0 then
    redis.call('SET', 'funnel:writing:' .. ARGV[2 * index + 1], '1', 'EX', hold)
  end
end
return unseen
"""
)

# ARGV: how many overlay entries a user keeps and for how many seconds, then five values of each
# event.
_SETTLE = (
    LUA_IDS
    + """
for first = 3, #ARGV, 5 do
  local shard, digest, user, position, payload = unpack(ARGV, first, first + 4)
  if not known(shard, digest) then
    remember(shard, digest)
    show(user, position, payload, ARGV[1], ARGV[2])
  end
  redis.call('DEL', 'funnel:writing:' .. digest)
end
"""
)


@dataclass(frozen=True)
class Entry:
    """An event on its way to the log: as JSON, and the digest of its id."""

    event: StoredEvent
    digest: int
    payload: str


def appended(events: Sequence[StoredEvent], new: Sequence[Entry]) -> Appended:
    """Return what became of the events, of which these entries were new."""
    digests = {entry.digest for entry in new}
    duplicates = []
    for position, event in enumerate(events):
        digest = id_digest(event["event_id"])
        if digest in digests:
            digests.remove(digest)  # a second event of one id is a repeat
        else:
            duplicates.append(position)
    return Appended(len(new), tuple(duplicates))


def entries_of(events: Iterable[StoredEvent]) -> list[Entry]:
    """Return the events as entries; of those with one id, the first."""
    entries: dict[int, Entry] = {}
    for event in events:
        digest = id_digest(event["event_id"])
        if digest not in entries:
            entries[digest] = Entry(event, digest, encode(event))
    return list(entries.values())


class EventDedup:
    """The steps around a write; each is one script.

    Every step raises OnlineStoreUnavailable if Redis does not answer.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._redis = redis_client(workspace)
        self._unseen = self._redis.register_script(_UNSEEN)
        self._settle = self._redis.register_script(_SETTLE)

    def unseen(self, entries: Sequence[Entry]) -> list[Entry]:
        """Return the entries whose ids are not marked as seen."""
        return self._check(entries, 0)

    def reserve(self, entries: Sequence[Entry]) -> list[Entry]:
        """Return the unseen entries, whose ids are marked as being written by the caller.

        Raises:
            OnlineStoreUnavailable: also if one of them is being written already, by another request
                or by one that was killed less than ``HELD_S`` seconds ago; nothing is marked then.

        """
        return self._check(entries, HELD_S)

    def settle(self, written: Iterable[tuple[Entry, str]]) -> None:
        """Mark written entries as seen and put them in the overlay; safe to repeat.

        Args:
            written: entries with their positions in the log.

        """
        arguments: list[Any] = [RECENT_EVENTS, RECENT_S]
        for entry, position in written:
            user = recent_key(entry.event["user_id"])
            arguments += [entry.digest % ID_SHARDS, entry.digest, user, position, entry.payload]
        with redis_answering():
            self._settle(args=arguments)

    def release(self, entries: Sequence[Entry]) -> None:
        """Remove the marks of entries that were not written, so that a retry succeeds at once."""
        if entries:
            with redis_answering():
                self._redis.delete(*(f"funnel:writing:{entry.digest}" for entry in entries))

    def get(self, key: str) -> int:
        """Return a number that is stored beside the marks, 0 if there is none."""
        with redis_answering():
            value: Any = self._redis.get(key)
        return int(value or 0)

    def set(self, key: str, value: int) -> None:
        """Store a number beside the marks."""
        with redis_answering():
            self._redis.set(key, value)

    def _check(self, entries: Sequence[Entry], hold_s: int) -> list[Entry]:
        if not entries:
            return []
        ids = (number for entry in entries for number in (entry.digest % ID_SHARDS, entry.digest))
        with redis_answering():
            unseen: Any = self._unseen(args=[hold_s, *ids])
        if unseen == [-1]:
            raise OnlineStoreUnavailable("an event of the request is being written for another one")
        return [entry for entry, new in zip(entries, unseen, strict=True) if new]
