"""One job per log: a second is refused, a dead holder replaced, and a fenced job cannot write."""

import json
import socket

import pytest

from feature_repo.stores.embedded_redis import connect, ensure_running, release
from pipelines.streaming.lease import (
    FENCE,
    LEASE,
    Fenced,
    JobRunning,
    Lease,
    StoreEmptied,
    holder,
)
from pipelines.streaming.source import patient_client
from tests.support.waiting import wait_until


@pytest.fixture
def client(tmp_path):
    yield patient_client(f"unix://{ensure_running(tmp_path)}")
    release(tmp_path)


def test_a_second_job_is_refused_with_the_first_ones_name(client):
    first = Lease(client)
    assert first.acquire() == 1
    with pytest.raises(JobRunning, match="stop it first"):
        Lease(client).acquire()
    first.release()
    assert holder(client) is None
    second = Lease(client)
    assert second.acquire() == 2
    second.release()


def test_a_holder_that_was_killed_is_followed_at_once(client):
    client.set(
        LEASE, json.dumps({"host": socket.gethostname(), "pid": 2**22 + 1, "since": 0}), px=15_000
    )
    lease = Lease(client)
    assert lease.acquire() == 1
    lease.release()


def test_a_silent_holder_elsewhere_is_followed_when_its_lease_runs_out(client):
    client.set(LEASE, json.dumps({"host": "elsewhere", "pid": 1, "since": 0}), px=1_500)
    lease = Lease(client)
    assert lease.acquire() == 1
    lease.release()


def test_writes_are_fenced(client, tmp_path):
    lease = Lease(client)
    lease.acquire()
    lease.write([(b"row", {b"a": b"1"})])
    other = connect(tmp_path)
    other.incr(FENCE)  # another job took over
    with pytest.raises(Fenced, match="another streaming job"):
        lease.write([(b"row", {b"a": b"2"}), (b"more", {b"a": b"2"})])
    assert other.hgetall("row") == {b"a": b"1"} and not other.exists("more")
    lease.release()


def test_an_emptied_redis_is_no_other_job(client, tmp_path):
    lease = Lease(client)
    lease.acquire()
    connect(tmp_path).flushall()
    with pytest.raises(StoreEmptied, match="Redis was emptied.*funnel materialize"):
        lease.write([(b"row", {b"a": b"1"})])
    wait_until(lambda: lease.lost is not None, patience_s=20)
    assert isinstance(lease.lost, StoreEmptied)
    lease.release()
