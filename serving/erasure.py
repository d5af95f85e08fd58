"""``DELETE /v1/users/{id}``: after its answer nothing of a user is served or accepted.

What lies in files is left to ``funnel erase``. The id goes on the list of erased users first: a
process that is killed after that leaves nothing that is served, and the same request, or ``funnel
erase``, finishes the work.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from feast import RepoConfig
from pydantic import BaseModel

from feature_repo import columns as c
from feature_repo.erased import ErasedUsers
from feature_repo.events.log_names import DEAD_LETTERS, LOG, batch_key, recent_key
from feature_repo.events.stored import encode
from feature_repo.stores.feature_store import feature_store, redis_client
from feature_repo.stores.online_store import row_key
from feature_repo.workspace import Workspace
from serving.api.schemas import RecommendationRequest
from serving.event_log.redis_stream import redis_answering

WAITING = ("tables", "impressions", "stream state", "models", "releases")
"""What an erasure leaves to ``funnel erase``, which also searches all other storage again."""

_TIMEOUT_S = 0.5  # every request reads the list of erased users
_STEP = 1_000
"""Entries a call: Redis serves others between."""

# A raw quotation mark cannot be within a JSON string, so a match is the field itself.
_FORGET = """
local entries, gone = redis.call('XRANGE', KEYS[1], ARGV[1], '+', 'COUNT', ARGV[2]), 0
for _, entry in ipairs(entries) do
  local text, found = table.concat(entry[2], ' '), false
  for needle = 3, #ARGV do found = found or string.find(text, ARGV[needle], 1, true) end
  if found then gone = gone + redis.call('XDEL', KEYS[1], entry[1]) end
end
return {#entries, #entries > 0 and entries[#entries][1] or '', gone}
"""


class ErasureResponse(BaseModel):
    """What was removed at once, by storage, and what waits for ``funnel erase``."""

    erasure: str
    removed: dict[str, int]
    waiting: list[str]


class Erasure:
    """Erases users from what serving reads, and knows who was erased."""

    def __init__(self, workspace: Workspace, config: RepoConfig | None = None) -> None:
        """``config``: of the Feast store (default: the workspace's)."""
        self._redis = redis_client(workspace)
        self._config = config or feature_store(workspace).config
        self._forget = self._redis.register_script(_FORGET)
        self.erased = ErasedUsers(workspace, redis_client(workspace, _TIMEOUT_S), waits=False)

    def served_as(self, user_id: str) -> str:
        """Return the user id that a request is answered for: "" for an erased user."""
        return "" if self.erased.among([user_id]) else user_id

    def anonymous(
        self, requests: Sequence[RecommendationRequest]
    ) -> Sequence[RecommendationRequest]:
        """Return requests in which "" stands for the users who were erased."""
        gone = self.erased.among(request.user_id for request in requests)
        if not gone:
            return requests
        return [
            one.model_copy(update={"user_id": ""}) if one.user_id in gone else one
            for one in requests
        ]

    def erase(self, user_id: str) -> ErasureResponse:
        """Put a user on the list and remove what serving reads of them; safe to repeat.

        Raises:
            OnlineStoreUnavailable: Redis did not answer; the user is on the list, and repeating the
                call is safe.

        """
        with redis_answering():
            number = self.erased.add(user_id)
        removed = self.forget(user_id)
        with self.erased.editing(number) as proof:
            for storage, count in removed.items():
                counts = proof["places"].setdefault(storage, {"found": 0, "removed": 0})
                counts["found"] += count
                counts["removed"] += count
        return ErasureResponse(erasure=number, removed=removed, waiting=list(WAITING))

    def forget(self, user_id: str) -> dict[str, int]:
        """Remove a user's keys and log entries from Redis and return how many of each there were.

        Raises:
            OnlineStoreUnavailable: Redis did not answer.

        """
        keys = {
            "online features": row_key(self._config, c.USER, user_id),
            "recent events": recent_key(user_id),
            "lists made by batch": batch_key(user_id),
        }
        with redis_answering():
            removed = {
                storage: int(self._redis.delete(key))  # type: ignore[arg-type]
                for storage, key in keys.items()
            }
            removed["event log"] = self._forget_entries(LOG, user_id)
            removed["dead letters"] = self._forget_entries(DEAD_LETTERS, user_id)
        return removed

    def _forget_entries(self, stream: str, user_id: str) -> int:
        needles = {form({"user_id": user_id})[1:-1] for form in (encode, json.dumps)}
        needles |= {needle.replace('": "', '":"', 1) for needle in needles}
        start = "-"
        removed = 0
        count = _STEP
        while count == _STEP:
            answer: Any = self._forget(keys=[stream], args=[start, _STEP, *sorted(needles)])
            count, last, gone = answer
            start = f"({last.decode()}"
            removed += gone
        return removed
