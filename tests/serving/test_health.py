"""Readiness, from the real Redis with what the real streaming job's parts leave in it."""

import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import pyarrow as pa
import pytest

from feature_repo.events.log_names import LOG
from feature_repo.stores.embedded_redis import release as stop_redis
from feature_repo.stores.feature_store import feature_store, redis_client
from feature_repo.stores.online_store import written_key
from feature_repo.workspace import Workspace
from pipelines.streaming.lease import Lease
from pipelines.streaming.offline import EVENT_SCHEMA
from pipelines.streaming.sink import Sink
from serving.event_log.redis_stream import RedisStreamLog
from serving.event_log.stream_state import (
    LogState,
    StreamState,
    StreamStatePoller,
    durability_problems,
    read_state,
)
from serving.http.health import ITEMS_AGE_S, LAG_S, liveness, readiness
from serving.observability.exposition import render
from serving.observability.metrics import Metrics
from serving.releases.release import Release
from tests.support.event_log import client, event, kill_redis
from tests.support.tiny_release import SPEC


@dataclass
class Serving:
    release: Release
    items_as_of: str | None


def at(moment):
    return datetime.fromtimestamp(moment, UTC).isoformat()


@pytest.fixture
def fresh(tmp_path):
    workspace = Workspace(tmp_path / "w")
    RedisStreamLog(workspace)
    yield workspace
    stop_redis(workspace.redis)


@pytest.fixture
def now():
    return time.time()


@pytest.fixture
def engine(tiny, now):
    return Serving(tiny.release, at(now - 5))


IDLE = StreamState(None, None, 0, 0, 0, 0, None)


def state(workspace, now):
    with redis_client(workspace) as redis:
        return read_state(redis, now)


def finish_batch(workspace, lease, batch):
    """Let the job's sink finish a batch with everything in the log."""
    with client(workspace) as redis:
        entries = [position.decode() for position, _ in redis.xrange(LOG)]
    columns = {"what": ["event"] * len(entries), "key": ["uu1"] * len(entries), "position": entries}
    columns |= {
        "micros": [int(time.time() * 1e6)] * len(entries),
        "event_id": entries,
        "user": ["u1"] * len(entries),
        "item": ["i1"] * len(entries),
    }
    columns |= {
        "kind": [0] * len(entries),
        "value": [None] * len(entries),
        "request_id": [None] * len(entries),
        "context": [None] * len(entries),
    }
    types = {"value": EVENT_SCHEMA.field("value").type}
    types |= dict.fromkeys(("request_id", "context"), pa.string())
    arrays = {name: pa.array(values, types.get(name)) for name, values in columns.items()}
    table = pa.table({**arrays, "payload": pa.array([None] * len(entries), pa.string())})
    sink = Sink(
        workspace, SPEC, feature_store(workspace), redis_client(workspace),
        lease=lease, generation=1, aggregates=[],
    )  # fmt: skip
    sink.write(table, batch, time.time())


def test_liveness_says_ok():
    assert liveness() == {"status": "ok"}


def test_it_is_not_ready_before_a_release_is_loaded(now):
    assert readiness(None, IDLE, now) == (503, {"status": "starting"})


def test_it_is_not_ready_on_its_way_out(engine, now):
    assert readiness(engine, IDLE, now, stopping=True) == (503, {"status": "stopping"})


def test_ready(engine, now):
    status, body = readiness(engine, IDLE, now)
    assert status == 200
    assert body == {
        "status": "ready", "release": engine.release.id, "online_store": True, "lost": [],
        "items_age_s": 5.0, "stream": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("stream", "age", "lost"),
    [
        (None, 5, ["online_store"]),
        (IDLE, None, ["item_counters"]),
        (IDLE, ITEMS_AGE_S + 1, ["item_counters"]),
        (StreamState(False, 0.0, 1, 0, 0, 0, None), 5, ["stream_job"]),
        (StreamState(True, LAG_S + 1, 1, 0, 0, 0, None), 5, ["stream_lag"]),
        (
            StreamState(False, LAG_S + 1, 1, 0, 0, 0, None),
            None,
            ["item_counters", "stream_job", "stream_lag"],
        ),
        (StreamState(True, None, 0, 0, 0, 0, LogState(1, 2)), 5, []),
        (replace(IDLE, item_counters=False), 5, ["item_counters"]),
        (replace(IDLE, user_features=False), 5, ["user_features"]),
        (replace(IDLE, durable=False), 5, ["event_durability"]),
        (replace(IDLE, durable=True), 5, []),
    ],
)
def test_losses_have_names_and_leave_it_in_service(tiny, now, stream, age, lost):
    engine = Serving(tiny.release, at(now - age) if age is not None else None)
    status, body = readiness(engine, stream, now)
    assert status == 200
    assert body["lost"] == lost
    assert body["status"] == ("degraded" if lost else "ready")


def test_the_life_of_a_streaming_job(fresh, now):
    log = RedisStreamLog(fresh, max_events=10)
    log.append([event()])
    assert (
        state(fresh, now).running is None and state(fresh, now).lag_s is None
    )  # there was never a job
    lease = Lease(redis_client(fresh))
    lease.acquire()
    assert state(fresh, now).running is True
    assert state(fresh, time.time() + 30).lag_s == pytest.approx(30, abs=5)
    finish_batch(fresh, lease, 0)
    seen = state(fresh, time.time() + 30)
    assert (seen.running, seen.lag_s, seen.events, seen.log.entries) == (True, 0.0, 1, 1)
    lease.release()
    log.append([event()])
    seen = state(fresh, time.time() + 30)
    assert seen.running is False and seen.lag_s == pytest.approx(30, abs=5)
    assert (seen.events, seen.log.entries) == (1, 2)


def test_a_log_elsewhere_has_the_lag_of_the_last_batch(fresh, monkeypatch, now):
    RedisStreamLog(fresh).append([event()])
    lease = Lease(redis_client(fresh))
    lease.acquire()
    finish_batch(fresh, lease, 0)
    lease.release()
    monkeypatch.setenv("FUNNEL_EVENT_LOG", "kafka://host:9092/events")
    seen = state(fresh, now + 1_000)
    assert seen.log is None and 0.0 <= seen.lag_s < 60


@pytest.mark.parametrize(
    ("settings", "problems"),
    [
        ({}, []),
        ({"appendfsync": "everysec"}, ["appendfsync is 'everysec', not 'always'"]),
        ({"appendonly": "no"}, ["appendonly is 'no', not 'yes'"]),
        ({"maxmemory-policy": "allkeys-lru"}, ["maxmemory-policy 'allkeys-lru' evicts events"]),
        ({"maxmemory-policy": "volatile-ttl"}, []),
    ],
)
def test_a_redis_that_may_lose_an_accepted_event_is_found(fresh, settings, problems, caplog):
    poller = StreamStatePoller(fresh)
    with client(fresh) as redis:
        for name, value in settings.items():
            redis.config_set(name, value)
        found = durability_problems(redis)
    assert len(found) == len(problems)
    assert all(said.startswith(known) for said, known in zip(found, problems, strict=True))
    poller.poll()
    assert poller.latest.durable is (not problems)
    assert all(known in caplog.text for known in problems)


def test_a_redis_that_was_emptied_has_lost_what_was_materialized(fresh, now):
    with client(fresh) as redis:
        for view in ("item_activity", "user_activity"):
            redis.incr(written_key(view))
        seen = read_state(redis, now)
        assert seen.item_counters and seen.user_features
        redis.flushall()
        seen = read_state(redis, now)
        assert not seen.item_counters and not seen.user_features


def test_the_latest_state_costs_no_read_and_is_lost_when_it_is_old(workspace, monkeypatch):
    poller = StreamStatePoller(workspace)
    assert poller.latest is None
    poller.poll()
    before = poller.latest.log.entries
    RedisStreamLog(workspace).append([event()])
    assert poller.latest.log.entries == before
    poller.poll()
    assert poller.latest.log.entries == before + 1
    later = time.monotonic() + 6.0
    monkeypatch.setattr("serving.event_log.stream_state.time.monotonic", lambda: later)
    assert poller.latest is None


def test_the_state_is_among_the_metrics_until_redis_goes(fresh, monkeypatch):
    monkeypatch.setenv("FUNNEL_LOG_MAX_EVENTS", "500")
    RedisStreamLog(fresh).append([event(), event()])
    lease = Lease(redis_client(fresh))
    lease.acquire()
    finish_batch(fresh, lease, 0)
    lease.release()
    metrics = Metrics()
    poller = StreamStatePoller(fresh)
    poller.poll()
    metrics.at_scrape.append(poller)
    text = render(metrics).decode()
    for line in (
        "funnel_online_store_up 1.0", "funnel_stream_running 0.0", "funnel_stream_lag_seconds 0.0",
        'funnel_stream_events_total{kind="all"} 2.0', "funnel_log_entries 2.0",
        "funnel_log_limit 500.0", "funnel_dead_letters 0.0",
    ):  # fmt: skip
        assert f"\n{line}\n" in text
    kill_redis(fresh)
    poller.poll()
    text = render(metrics).decode()
    assert "\nfunnel_online_store_up 0.0\n" in text and "funnel_stream" not in text


def test_a_redis_that_stands_still_is_given_up_within_a_probe(fresh):
    poller = StreamStatePoller(fresh)
    poller.poll()
    with client(fresh) as redis:
        redis.execute_command("CLIENT", "PAUSE", "2500")
    start = time.monotonic()
    poller.poll()
    assert poller.latest is None
    assert time.monotonic() - start < 1.0
    time.sleep(2.0)
