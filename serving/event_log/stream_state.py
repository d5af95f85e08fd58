"""State of the streaming job and of the event log, read from Redis for probes and metrics."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import redis
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from feature_repo.events.log_names import DEAD_LETTERS, LEASE, LOG, STATUS, log_address
from feature_repo.periodic import PeriodicTask
from feature_repo.settings import read_settings
from feature_repo.stores.feature_store import redis_client
from feature_repo.stores.online_store import written_key
from feature_repo.workspace import Workspace

_TIMEOUT_S = 0.2  # a probe may take about a second, and the client tries twice
_EVERY_S = 1.0
_LOST_S = 5.0
_CHECK_S = 60.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LogState:
    """The Redis Stream: how many entries it holds, done ones included, and may hold."""

    entries: int
    limit: int


@dataclass(frozen=True)
class StreamState:
    """State of the streaming job, as Redis has it.

    ``running``: somebody holds the lease; None: no job was ever started. ``lag_s``: how long the
    oldest event waits that no finished batch has, 0.0 if none does (where the log is not in Redis:
    the last batch's lag). ``log``: None where the log is not in Redis. ``item_counters`` and
    ``user_features``: whether Redis has what was materialized; false after it was emptied.
    ``durable``: whether an accepted event outlives a crash of Redis, and no memory limit evicts it;
    None: the log is elsewhere, or Redis does not say.
    """

    running: bool | None
    lag_s: float | None
    events: int
    late: int
    poison: int
    dead_letters: int
    log: LogState | None
    item_counters: bool = True
    user_features: bool = True
    durable: bool | None = None


def read_state(client: redis.Redis, now: float) -> StreamState:
    """Return the state at a time (epoch seconds).

    Raises:
        redis.RedisError: Redis did not answer.

    """
    with client.pipeline(transaction=False) as pipe:
        pipe.get(STATUS)
        pipe.exists(LEASE)
        pipe.xlen(LOG)
        pipe.xlen(DEAD_LETTERS)
        pipe.exists(written_key("item_activity"))
        pipe.exists(written_key("user_activity"))
        raw, leased, entries, dead, items, users = pipe.execute()
    status: dict[str, Any] = json.loads(raw) if raw else {}
    known = bool(status or leased)
    in_redis = log_address() is None
    lag = _waiting(client, status.get("position", "0-0"), now) if in_redis else _last_lag(status)
    return StreamState(
        running=bool(leased) if known else None,
        lag_s=lag if known else None,
        events=status.get("events", 0),
        late=status.get("late", 0),
        poison=status.get("poison", 0),
        dead_letters=dead,
        log=LogState(entries, read_settings().log_max_events) if in_redis else None,
        item_counters=bool(items),
        user_features=bool(users),
    )


def durability_problems(client: redis.Redis) -> list[str] | None:
    """Return why an event in Redis may be lost after it was accepted; None: Redis does not say.

    Raises:
        redis.RedisError: Redis did not answer.

    """
    try:
        settings: Any = client.config_get("append*") | client.config_get("maxmemory-policy")  # type: ignore[operator]
    except redis.ResponseError:  # managed servers forbid it
        return None
    wanted = {"appendonly": "yes", "appendfsync": "always"}
    problems = [
        f"{name} is '{settings[name]}', not '{value}'"
        for name, value in wanted.items()
        if settings.get(name, value) != value
    ]
    policy = settings.get("maxmemory-policy", "")
    if policy.startswith("allkeys"):
        problems.append(f"maxmemory-policy '{policy}' evicts events; set 'noeviction'")
    return problems


def _waiting(client: redis.Redis, position: str, now: float) -> float:
    oldest: list[Any] = client.xrange(LOG, min=f"({position}", count=1)  # type: ignore[assignment]
    return max(0.0, now - int(oldest[0][0].partition(b"-")[0]) / 1_000) if oldest else 0.0


def _last_lag(status: dict[str, Any]) -> float | None:
    return status["lag_ms"] / 1_000 if "lag_ms" in status else None


class StreamStatePoller:
    """Reads the state from Redis once a second; who asks for it never waits for Redis."""

    def __init__(self, workspace: Workspace) -> None:
        self._redis = redis_client(workspace, timeout_s=_TIMEOUT_S)
        self._polled_at = -math.inf
        self._checked_at = -math.inf
        self._durable: bool | None = None
        self._state: StreamState | None = None

    def poll(self) -> None:
        """Read the state."""
        try:
            state = read_state(self._redis, time.time())
            if state.log is not None and time.monotonic() - self._checked_at > _CHECK_S:
                self._check_durability()
            self._state = replace(state, durable=self._durable)
        except (redis.RedisError, OSError):
            self._state = None
        self._polled_at = time.monotonic()

    def _check_durability(self) -> None:
        problems = durability_problems(self._redis)
        durable = None if problems is None else not problems
        if problems and durable != self._durable:
            _log.warning("an accepted event may be lost when Redis ends: %s", "; ".join(problems))
        self._durable = durable
        self._checked_at = time.monotonic()

    @property
    def latest(self) -> StreamState | None:
        """The state a second ago or so; None: the online store does not answer."""
        return self._state if time.monotonic() - self._polled_at < _LOST_S else None

    def start(self) -> PeriodicTask:
        """Poll from now on; close what is returned."""
        self.poll()
        return PeriodicTask(_EVERY_S, self.poll, "stream state")

    def collect(self) -> Iterable[Metric]:
        """Yield the state as Prometheus metrics."""
        state = self.latest
        yield GaugeMetricFamily(
            "funnel_online_store_up", "1: the online store answers", float(state is not None)
        )
        if state is None:
            return
        if state.running is not None:
            yield GaugeMetricFamily(
                "funnel_stream_running", "1: a streaming job holds the lease", float(state.running)
            )
        if state.lag_s is not None:
            yield GaugeMetricFamily(
                "funnel_stream_lag_seconds",
                "How long the oldest event waits that is not in the features",
                state.lag_s,
            )
        handled = CounterMetricFamily(
            "funnel_stream_events",
            "Events that the job has taken, and those of them that were late or unreadable",
            labels=["kind"],
        )
        for kind, count in (("all", state.events), ("late", state.late), ("poison", state.poison)):
            handled.add_metric([kind], count)
        yield handled
        yield GaugeMetricFamily(
            "funnel_dead_letters", "Entries that could not be read", state.dead_letters
        )
        if state.log:
            yield GaugeMetricFamily(
                "funnel_log_entries", "Entries of the event log, done or not", state.log.entries
            )
            yield GaugeMetricFamily(
                "funnel_log_limit", "Entries that the event log may hold", state.log.limit
            )
