"""One active job a log: a lease in Redis, and a fencing token that a job which lost it cannot write with."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterable
from typing import Any

import redis

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


class JobRunning(FunnelError):  # noqa: N818 - a state, said to the user
    """Another streaming job works on this log."""


class Fenced(FunnelError):  # noqa: N818
    """Another job has taken this log over: what this one writes would not be the newest."""


class Lease:
    """The right to write the features of a log, kept up by a thread until it is released."""

    def __init__(self, client: redis.Redis) -> None:
        """``client`` should wait for a Redis that is away, see ``patient_client``."""
        self._redis = client
        self._holder = json.dumps(
            {"host": socket.gethostname(), "pid": os.getpid(), "since": int(time.time())}
        )
        self._token = 0
        self._stop = threading.Event()
        self.lost = False

    def acquire(self) -> int:
        """Take the lease and return the fencing token, a number larger than any before.

        A holder on this machine that is dead is followed at once, one elsewhere when its lease runs
        out.

        Raises:
            JobRunning: another job holds it, and is alive.

        """
        left: int | None = None
        while True:
            answer: Any = self._redis.eval(_ACQUIRE, 2, LEASE, FENCE, self._holder, _TTL_MS)
            token, holder = answer
            if token:
                break
            other = json.loads(holder)
            now_left: Any = self._redis.pttl(LEASE)
            alive = left is not None and now_left > left  # it was renewed between two looks
            if other["host"] == socket.gethostname():
                alive = is_running(other["pid"])
                if not alive:
                    self._redis.eval(_RELEASE, 1, LEASE, holder)
            if alive:
                raise JobRunning(
                    f"a streaming job works on this log already (process {other['pid']} on {other['host']}, "
                    f"since {time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(other['since']))} UTC): stop it first"
                )
            left = now_left
            time.sleep(0.5)
        self._token = int(token)
        threading.Thread(target=self._keep, daemon=True, name="lease").start()
        return self._token

    def _keep(self) -> None:
        while not self._stop.wait(_BEAT_S):
            try:
                if not self._redis.eval(
                    _RENEW, 2, LEASE, FENCE, self._token, self._holder, _TTL_MS
                ):
                    self.lost = True
                    return
            except redis.RedisError:
                continue  # it may come back in time

    def release(self) -> None:
        """Give the lease up."""
        self._stop.set()
        self._redis.eval(_RELEASE, 1, LEASE, self._holder)

    def write(self, rows: Iterable[tuple[bytes, dict[bytes, bytes]]]) -> None:
        """Write hashes in one transaction that fails if another job has the token by then.

        Raises:
            Fenced: it has; nothing was written.

        """
        rows = list(rows)
        with self._redis.pipeline(transaction=True) as pipe:
            while True:
                try:
                    pipe.watch(FENCE)  # type: ignore[no-untyped-call]
                    if int(pipe.get(FENCE) or 0) != self._token:  # type: ignore[arg-type]
                        raise Fenced(
                            "another streaming job has taken over this log; this one stops"
                        )
                    pipe.multi()
                    for key, fields in rows:
                        pipe.hset(key, mapping=fields)  # type: ignore[arg-type]
                    pipe.execute()
                    return
                except redis.WatchError:
                    continue  # the token was changed, or the connection broke: the next look at it tells


def holder(client: redis.Redis) -> dict[str, Any] | None:
    """Return who holds the lease: host, pid, since (epoch seconds); None: nobody."""
    value: bytes | None = client.get(LEASE)  # type: ignore[assignment]
    return json.loads(value) if value else None
