"""The Redis Stream log: one step for log, overlay and repeats.

Bounded, and never trimmed past what was committed.
"""

import json
import time

import pytest

from feature_repo.events.log_names import COMMITTED, LOG, recent_key
from feature_repo.stores.embedded_redis import connect, release
from feature_repo.workspace import Workspace
from serving.event_log.port import Appended, LogFull
from serving.event_log.redis_stream import RedisStreamLog


@pytest.fixture
def workspace(tmp_path):
    yield Workspace(tmp_path)
    release(tmp_path / "redis")


@pytest.fixture
def client(workspace):
    return connect(workspace.redis)


def events(count, start=0, user="u"):
    return [
        {
            "event_id": f"e{n}",
            "user_id": user,
            "item_id": f"i{n}",
            "type": "view",
            "timestamp": time.time(),
        }
        for n in range(start, start + count)
    ]


def test_a_batch_is_in_the_log_and_in_the_overlay(workspace, client):
    appended = RedisStreamLog(workspace).append(events(3))
    assert appended == Appended(3)
    logged = [(key.decode(), json.loads(fields[b"event"])) for key, fields in client.xrange(LOG)]
    overlay = [entry.decode().partition("|") for entry in client.lrange(recent_key("u"), 0, -1)]
    assert [event["event_id"] for _, event in logged] == ["e0", "e1", "e2"]
    assert [(key, json.loads(payload)) for key, _, payload in reversed(overlay)] == logged
    assert 0 < client.ttl(recent_key("u")) <= 7 * 86_400


def test_a_repeat_is_harmless_and_known_for_a_day_at_least(workspace, client):
    log = RedisStreamLog(workspace)
    assert log.append([*events(2), *events(2)]) == Appended(2, (2, 3))
    assert log.append(events(3)).accepted == 1
    assert client.xlen(LOG) == 3
    kept = [key for key in client.scan_iter("funnel:ids:*")]
    assert kept and all(client.ttl(key) > 86_400 for key in kept)


def test_a_full_log_takes_nothing_of_a_batch_and_its_retry_is_no_repeat(workspace, client):
    log = RedisStreamLog(workspace, max_events=5)
    log.append(events(4))
    with pytest.raises(LogFull, match="^5 events"):
        log.append(events(2, start=4))
    assert client.xlen(LOG) == 4
    newest = client.xrevrange(LOG, count=1)[0][0]
    client.set(COMMITTED, newest)
    assert log.append(events(2, start=4)).accepted == 2


def test_what_was_not_committed_is_never_trimmed(workspace, client):
    log = RedisStreamLog(workspace, max_events=10)
    log.append(events(8))
    ids = [key for key, _ in client.xrange(LOG)]
    client.set(COMMITTED, ids[3])
    log.append(events(4, start=8))
    left = [key for key, _ in client.xrange(LOG)]
    assert ids[4:] == [key for key in left if key in ids[4:]]
    with pytest.raises(LogFull, match="^10 events"):
        log.append(events(6, start=12))
