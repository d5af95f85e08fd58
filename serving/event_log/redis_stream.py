"""The event log as a Redis Stream: log, deduplication and overlay in one Redis script."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import redis

from feature_repo.events.log_names import COMMITTED, LOG, recent_key
from feature_repo.events.stored import StoredEvent, encode
from feature_repo.settings import read_settings
from feature_repo.stores.feature_store import redis_client
from feature_repo.workspace import Workspace
from serving.event_log.port import Appended, LogFull
from serving.online.features import OnlineStoreUnavailable
from serving.recommender.deadline import Breaker

_AT_ONCE = 8
_TURN_S = 2.0

RECENT_S = 7 * 86_400
RECENT_EVENTS = 500
# A shard of a few million ids a day is still one of Redis's compact sets of integers.
ID_SHARDS = 16_384

# Ids are stored by day and searched in two days: a repeat is known for 24 to 48 hours.
LUA_IDS = """
local day = math.floor(redis.call('TIME')[1] / 86400)
local function known(shard, digest)
  return redis.call('SISMEMBER', 'funnel:ids:' .. day .. ':' .. shard, digest) == 1
    or redis.call('SISMEMBER', 'funnel:ids:' .. (day - 1) .. ':' .. shard, digest) == 1
end
local function remember(shard, digest)
  redis.call('SADD', 'funnel:ids:' .. day .. ':' .. shard, digest)
  redis.call('EXPIRE', 'funnel:ids:' .. day .. ':' .. shard, 172800)
end
local function show(user, position, payload, entries, seconds)
  redis.call('LPUSH', user, position .. '|' .. payload)
  redis.call('LTRIM', user, 0, entries - 1)
  redis.call('EXPIRE', user, seconds)
end
"""
"""What every script over ids and overlays begins with."""

# One script, so that a batch is in the log, in the overlay and known as seen, or in none of them.
_APPEND = (
    LUA_IDS
    + """
local log, limit = KEYS[1], tonumber(ARGV[1])
local count = (#ARGV - 3) / 4
if redis.call('XLEN', log) + count > limit then
  local done = redis.call('GET', KEYS[2])
  if done then
    redis.call('XTRIM', log, 'MINID', '~', done, 'LIMIT', 20000)
    if redis.call('XLEN', log) + count > limit then redis.call('XTRIM', log, 'MINID', done) end
  end
  if redis.call('XLEN', log) + count > limit then return nil end
end
local repeated = {}
for first = 4, #ARGV, 4 do
  local shard, digest, user, payload = unpack(ARGV, first, first + 3)
  if known(shard, digest) then
    repeated[#repeated + 1] = (first - 4) / 4
  else
    remember(shard, digest)
    show(user, redis.call('XADD', log, '*', 'event', payload), payload, ARGV[2], ARGV[3])
  end
end
return repeated
"""
)


class RedisStreamLog:
    """The default event log: a bounded Redis Stream, trimmed only up to what is committed.

    Durable means written and synced where Redis runs with ``appendonly yes`` and ``appendfsync
    always``, as the embedded one does; ``/readyz`` says where it is not set so.
    """

    def __init__(self, workspace: Workspace, max_events: int | None = None) -> None:
        """Connect; ``max_events`` bounds the log (default: ``FUNNEL_LOG_MAX_EVENTS``)."""
        self._redis = redis_client(workspace)
        self._append = self._redis.register_script(_APPEND)
        self._max = max_events or read_settings().log_max_events
        self._turns = threading.BoundedSemaphore(_AT_ONCE)
        self._breaker = Breaker(failures=2)

    def append(self, events: Sequence[StoredEvent]) -> Appended:
        """Append checked events; they are durable then, and their users' next requests see them.

        Raises:
            OnlineStoreUnavailable: Redis did not answer; repeating the call is safe.
            LogFull: nothing was appended.

        """
        if not events:
            return Appended(0)
        arguments: list[Any] = [self._max, RECENT_EVENTS, RECENT_S]
        for event in events:
            digest = id_digest(event["event_id"])
            arguments += [digest % ID_SHARDS, digest, recent_key(event["user_id"]), encode(event)]
        with self._turn(), redis_answering():
            repeated: Any = self._append(keys=[LOG, COMMITTED], args=arguments)
        if repeated is None:
            raise LogFull(f"{self._max} events wait for the streaming job")
        return Appended(len(events) - len(repeated), tuple(repeated))

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Let a few callers wait for Redis at once, and nobody while it is known not to answer.

        The client opens connections one after the other: with a Redis that hangs, a hundred callers
        would wait for the sum of their time limits.

        Raises:
            OnlineStoreUnavailable: Redis has not answered others.

        """
        if not self._turns.acquire(timeout=_TURN_S):
            raise OnlineStoreUnavailable("others wait for Redis already")
        try:
            if not self._breaker.allows():
                raise OnlineStoreUnavailable("Redis did not answer a moment ago")
            try:
                yield
            except OnlineStoreUnavailable:
                self._breaker.failed()
                raise
            self._breaker.succeeded()
        finally:
            self._turns.release()


@contextmanager
def redis_answering() -> Iterator[None]:
    """Raise the event log's own errors if Redis does not answer or has no memory left."""
    try:
        yield
    except redis.ResponseError as error:
        if "OOM" in str(error):
            raise LogFull("Redis has no memory left") from error
        raise OnlineStoreUnavailable(str(error)) from error
    except (redis.RedisError, OSError) as error:
        raise OnlineStoreUnavailable(str(error)) from error


def id_digest(event_id: str) -> int:
    """Return a signed 64-bit digest of an event id, kept to detect repeats.

    Two of 10 million ids collide with a probability of 1e-5.
    """
    return int.from_bytes(
        hashlib.blake2b(event_id.encode(), digest_size=8).digest(), "big", signed=True
    )
