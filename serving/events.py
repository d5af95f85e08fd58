"""Accepted events: appended to the log and visible to their user's next request, in one Redis step."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import redis

from feature_repo.store import redis_client
from feature_repo.workspace import Workspace
from serving.online import OnlineStoreUnavailable, recent_key

LOG = "funnel:events"
_DEDUPLICATE_S = 86_400
_RECENT_S = 7 * 86_400
_RECENT_EVENTS = 100

# One script, so that an event is in the log, in the overlay and known as seen, or in none of them.
_APPEND = """
if not redis.call('SET', KEYS[1], '1', 'NX', 'EX', ARGV[1]) then return 0 end
redis.call('XADD', KEYS[2], '*', 'event', ARGV[2])
redis.call('LPUSH', KEYS[3], ARGV[3])
redis.call('LTRIM', KEYS[3], 0, ARGV[4] - 1)
redis.call('EXPIRE', KEYS[3], ARGV[5])
return 1
"""


@dataclass(frozen=True)
class Appended:
    """How many events were new, and how many repeated an ``event_id`` of the last day."""

    accepted: int
    duplicates: int


class EventLog:
    """The Redis Stream that accepted events go to."""

    def __init__(self, workspace: Workspace) -> None:
        self._redis = redis_client(workspace)
        self._append = self._redis.register_script(_APPEND)

    def append(self, events: Sequence[dict[str, Any]]) -> Appended:
        """Append checked events.

        Raises:
            OnlineStoreUnavailable: Redis did not answer; repeating the call is safe.

        """
        try:
            pipeline = self._redis.pipeline(transaction=False)
            for event in events:
                seen = {name: event[name] for name in ("item_id", "type", "timestamp")}
                self._append(
                    keys=[f"funnel:event:{event['event_id']}", LOG, recent_key(event["user_id"])],
                    args=[_DEDUPLICATE_S, json.dumps(event), json.dumps(seen), _RECENT_EVENTS, _RECENT_S],
                    client=pipeline,
                )
            results = pipeline.execute()
        except (redis.RedisError, OSError) as error:
            raise OnlineStoreUnavailable(str(error)) from error
        accepted = sum(int(result) for result in results)
        return Appended(accepted, len(results) - accepted)
