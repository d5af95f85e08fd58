"""One active job per log: a lease in Redis, and a fencing token that refuses other writers."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterable
from typing import Any

import redis
from pydantic import BaseModel, ConfigDict

from feature_repo.errors import FunnelError
from feature_repo.events.log_names import LEASE
from feature_repo.processes import is_running

FENCE = "funnel:stream:fence"
_TTL_MS = 15_000
_BEAT_S = 3.0

_ACQUIRE = """
local holder = redis.call('GET', KEYS[1])
if holder then return {0, holder} end
local token = redis.call('INCR', KEYS[2])
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return {token, ''}
"""
# A lease that ran out while Redis was away is taken back, unless another job has got a newer token.
_RENEW = """
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 1
"""
_RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end"


_EMPTIED = (
    "Redis was emptied while the streaming job ran: run 'funnel ingest', 'funnel features', "
    "'funnel materialize' and then 'funnel stream --rebuild'"
)
_FENCED = "another streaming job has taken over this log; this one stops"


class JobRunning(FunnelError):  # noqa: N818 - a state, said to the user
    """Another streaming job works on this log."""


class Fenced(FunnelError):  # noqa: N818
    """Another job has taken over the log: what this one writes would not be the newest."""

    def __init__(self) -> None:
        super().__init__(_FENCED)


class StoreEmptied(FunnelError):  # noqa: N818
    """Redis has lost the token that this job holds: with it the features and the log are gone."""

    def __init__(self) -> None:
        super().__init__(_EMPTIED)


class JobHolder(BaseModel):
    """The process that holds a log's lease; ``since`` is in epoch seconds."""

    model_config = ConfigDict(frozen=True)

    host: str
    pid: int
    since: int

    def __str__(self) -> str:
        """Return the process and its machine."""
        return f"process {self.pid} on {self.host}"


class Lease:
    """The right to write the features of a log, renewed by a thread until it is released."""

    def __init__(self, client: redis.Redis) -> None:
        """``client`` should wait for an unreachable Redis, see ``patient_client``."""
        self._redis = client
        self._holder = JobHolder(
            host=socket.gethostname(), pid=os.getpid(), since=int(time.time())
        ).model_dump_json()
        self._token = 0
        self._stop = threading.Event()
        self.lost: FunnelError | None = None
        """Why this job must stop; None: the lease is its own."""

    def acquire(self) -> int:
        """Take the lease and return the fencing token, a number larger than any before.

        The lease of a dead process on this machine is taken at once, one of another machine when it
        expires.

        Raises:
            JobRunning: a running job holds it.

        """
        remaining_ms: int | None = None
        while True:
            answer: Any = self._redis.eval(_ACQUIRE, 2, LEASE, FENCE, self._holder, _TTL_MS)
            token, holder = answer
            if token:
                break
            other = JobHolder.model_validate_json(holder)
            now_remaining_ms: Any = self._redis.pttl(LEASE)
            if other.host == socket.gethostname():
                running = is_running(other.pid)
                if not running:
                    self._redis.eval(_RELEASE, 1, LEASE, holder)
            else:  # it runs if it has renewed its lease since the last iteration
                running = remaining_ms is not None and now_remaining_ms > remaining_ms
            if running:
                since = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(other.since))
                raise JobRunning(
                    f"a streaming job works on this log already ({other}, since {since} UTC): "
                    "stop it first"
                )
            remaining_ms = now_remaining_ms
            time.sleep(0.5)
        self._token = int(token)
        threading.Thread(target=self._renew, daemon=True, name="lease").start()
        return self._token

    def _renew(self) -> None:
        while not self._stop.wait(_BEAT_S):
            try:
                if not self._redis.eval(
                    _RENEW, 2, LEASE, FENCE, self._token, self._holder, _TTL_MS
                ):
                    self.lost = self._reason()
                    return
            except redis.RedisError:
                continue  # Redis may answer again before the lease expires

    def _reason(self) -> FunnelError:
        """Return why the token is no longer this job's."""
        return Fenced() if self._redis.exists(FENCE) else StoreEmptied()

    def release(self) -> None:
        """Release the lease."""
        self._stop.set()
        self._redis.eval(_RELEASE, 1, LEASE, self._holder)

    def write(self, rows: Iterable[tuple[bytes, dict[bytes, bytes]]]) -> None:
        """Write hashes in one transaction, which fails if another job has a newer token.

        Raises:
            Fenced: another job has one; nothing was written.
            StoreEmptied: Redis has none; nothing was written.

        """
        rows = list(rows)
        with self._redis.pipeline(transaction=True) as pipe:
            while True:
                try:
                    pipe.watch(FENCE)  # type: ignore[no-untyped-call]
                    token: Any = pipe.get(FENCE)
                    if int(token or 0) != self._token:
                        raise Fenced if token else StoreEmptied
                    pipe.multi()
                    for key, fields in rows:
                        pipe.hset(key, mapping=fields)  # type: ignore[arg-type]
                    pipe.execute()
                    return
                except redis.WatchError:
                    continue  # the token changed or the connection broke: read the token again


def holder(client: redis.Redis) -> JobHolder | None:
    """Return who holds the lease; None: nobody."""
    value: bytes | None = client.get(LEASE)  # type: ignore[assignment]
    return JobHolder.model_validate_json(value) if value else None
