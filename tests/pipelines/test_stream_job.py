"""The real job on the real log agrees with Spark batch, and counts each event once after a kill."""

import contextlib
import json
import os
import signal
import socket
import threading
import time

import httpx
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from feature_repo import columns as c
from feature_repo.events.log_names import COMMITTED, LOG
from feature_repo.stores.embedded_redis import ensure_running
from feature_repo.stores.feature_store import redis_client
from pipelines.ingest.ingest import ingest
from pipelines.ingest.ingested import event_files, read_events
from pipelines.operations.recount import check
from pipelines.streaming.job import StreamConfig, StreamJob
from pipelines.streaming.lease import JobRunning
from pipelines.streaming.sink import DEAD_LETTERS
from pipelines.streaming.status import stream_status
from pipelines.workflow.stages import run_features, run_materialize
from serving.event_log.redis_stream import RedisStreamLog
from tests.support.forked import kill
from tests.support.streaming_job import (
    CRASH_POINTS,
    Feeder,
    drained,
    kill_started,
    start_api,
    start_job,
    stop_job,
    streaming,
)
from tests.support.tiny_world import tiny_world
from tests.support.waiting import wait_until


@pytest.fixture
def workspace(tiny):
    """A world with features; its jobs are killed before its Redis is stopped."""
    yield tiny
    kill_started()


@pytest.fixture
def released(copied):
    """A copy of a world with a release; its processes are killed before its Redis is stopped."""
    yield copied
    kill_started()


def without_last_day(workspace):
    """Take the last day's events out of the ingested ones and return them."""
    events = read_events(workspace)
    cut = events[c.TIMESTAMP].max() - (events[c.TIMESTAMP].max() - events[c.TIMESTAMP].min()) / 30
    for name in event_files(workspace):
        table = pq.read_table(name, partitioning=None)
        pq.write_table(table.filter(pc.less(table[c.TIMESTAMP], pa.scalar(cut))), name)
    return events[events[c.TIMESTAMP] >= cut]


def newest_states(folder, key):
    """Return the panes of each key's newest state, of those that have counted an event."""
    tables = [pq.read_table(path) for path in folder.glob("*.parquet")]
    state = f"{folder.name}_state"
    rows = pa.concat_tables(tables).sort_by(c.EVENT_TIMESTAMP).select([key, state]).to_pylist()
    panes = {row[key]: json.loads(row[state])["panes"] for row in rows if row[state]}
    return {name: found for name, found in panes.items() if any(found)}


def send(workspace, events):
    log = RedisStreamLog(workspace)
    rows = [
        {"event_id": row.event_id, "user_id": row.user_id, "item_id": row.item_id, "type": row.type,
         "timestamp": row.timestamp.timestamp(),
         **({} if row.value != row.value else {"value": row.value})}
        for row in events.itertuples()
    ]  # fmt: skip
    for start in range(0, len(rows), 500):
        log.append(rows[start : start + 500])
    return len(rows)


def test_stream_and_batch_agree_on_every_value(workspace):
    whole = tiny_world().features
    late = without_last_day(workspace)
    (workspace.root / "features" / "current").unlink()
    run_features(workspace)
    run_materialize(workspace)
    # In random order: the features must not depend on the order of arrival.
    sent = send(workspace, late.sample(frac=1.0, random_state=1))
    assert sent > 50
    client = redis_client(workspace)
    client.xadd(LOG, {"event": "not an event"})
    client.xadd(
        LOG,
        {"event": json.dumps({"user_id": "u", "item_id": "i", "event_id": "e", "type": "stare"})},
    )
    with streaming(workspace) as wait_until_drained:
        wait_until_drained()
        status = stream_status(client)
        assert (status.events, status.poison, status.running.pid) == (sent, 2, os.getpid())
        assert "unknown type 'stare'" in client.xrange(DEAD_LETTERS)[1][1][b"reason"].decode()
    assert stream_status(client).running is None
    for table, key in (("user_history", c.USER), ("user_recent", c.USER), ("bought", c.ITEM)):
        found = newest_states(workspace.features / table, key)
        assert len(found) > 20 and found == newest_states(whole / table, key)
    recount = check(workspace, time.time())
    assert (recount.differing, recount.examples) == (0, [])
    before = client.dbsize()
    run_materialize(workspace)  # older rows of the batch do not replace what the stream wrote
    assert check(workspace, time.time()).differing == 0 and client.dbsize() == before


def survive(workspace, kills, trouble=None):
    """Start the job under load once for each kill, then let it finish; every event counts once.

    ``kills`` are the crash points of each start, see ``start_job``.
    """
    run_materialize(workspace)
    spec = workspace.spec()
    feeder = Feeder(
        workspace, [f"n{n}" for n in range(40)], [f"i{n:04d}" for n in range(30)], spec.event_types
    )
    try:
        for crash_points in kills:
            job = start_job(workspace, *crash_points)
            assert job.wait(timeout=600) == -signal.SIGKILL, (
                workspace.root / "job.log"
            ).read_text()[-3_000:]
        with streaming(workspace) as wait_until_drained:
            wait_until(runs(workspace))
            if trouble:
                trouble(workspace)
            time.sleep(3)
            feeder.stop()
            wait_until_drained()
    finally:
        feeder.stop()
    client = redis_client(workspace)
    status = stream_status(client)
    assert feeder.malformed > 0
    assert client.xlen(LOG) == feeder.accepted + feeder.malformed
    assert (status.events, status.poison) == (feeder.accepted, feeder.malformed)
    assert status.dead_letters == feeder.malformed
    assert client.get(COMMITTED) is not None
    recount = check(workspace, time.time())
    assert (recount.lost, recount.doubled, recount.differing, recount.examples) == (0, 0, 0, [])


def runs(workspace):
    """Return a condition: the lease is this process's, and not one that a killed job left."""

    def ours():
        return getattr(stream_status(redis_client(workspace)).running, "pid", None) == os.getpid()

    return ours


def a_second_job_is_refused(workspace):
    with pytest.raises(JobRunning, match=rf"process {os.getpid()} on .*: stop it first"):
        StreamJob(workspace, StreamConfig()).run()


@pytest.mark.faults  # a Spark job starts for each point
def test_killed_in_the_middle_of_its_writes(workspace):
    crash_points = ("within-online", "after-online", "within-offline", "batch-end")
    survive(workspace, [crash_points], a_second_job_is_refused)
    restarts = (workspace.root / "job.log").read_text().count("restarting from the checkpoint")
    assert restarts >= 3


def kill_and_pause_redis(workspace):
    time.sleep(15)
    pid = redis_client(workspace).info("server")["process_id"]
    os.kill(pid, signal.SIGKILL)
    time.sleep(2)
    ensure_running(workspace.redis)
    time.sleep(5)
    pid = redis_client(workspace).info("server")["process_id"]
    os.kill(pid, signal.SIGSTOP)
    time.sleep(10)
    os.kill(pid, signal.SIGCONT)


@pytest.mark.faults
def test_killed_at_every_point(workspace):
    survive(workspace, [(point,) for point in CRASH_POINTS])


@pytest.mark.faults
def test_redis_killed_and_paused(workspace):
    survive(workspace, [], kill_and_pause_redis)


@pytest.mark.faults
def test_an_emptied_redis_comes_back_by_the_documented_commands(workspace):
    late = read_events(workspace).tail(300)
    late = late.assign(event_id="again-" + late[c.EVENT_ID])
    run_materialize(workspace)
    with streaming(workspace) as wait_until_drained:
        send(workspace, late[: len(late) // 2])
        wait_until_drained()
    redis_client(workspace).flushall()
    assert check(workspace, time.time()).differing > 0

    ingest(workspace.spec(), workspace.root / "raw", workspace, shift_to_now=True)
    for stage in (run_features, run_materialize):
        stage(workspace)
    with streaming(workspace, rebuild=True) as wait_until_drained:
        send(workspace, late[len(late) // 2 :])
        wait_until_drained()
    recount = check(workspace, time.time())
    assert (recount.differing, recount.examples) == (0, [])
    assert recount.events >= len(late)


def kill_once_logged(client, before, api):
    """Kill the API as soon as its request is in the log, most likely before it has answered."""
    while client.xlen(LOG) == before:
        pass
    kill(api)


@pytest.mark.faults
def test_the_api_is_killed_in_the_middle_of_a_batch(released):
    """The sender repeats what was not answered; each event is in the log once."""
    run_materialize(released)
    client, sent = redis_client(released), 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"

    def serve():
        def ready():
            with contextlib.suppress(httpx.TransportError):
                return httpx.get(f"{url}/readyz").status_code == 200

        api = start_api(released, url.rpartition(":")[2])
        wait_until(ready, what=(released.root / "api.log").read_text()[-2_000:])
        return api

    def post(batch):
        return httpx.post(f"{url}/v1/events", json={"events": batch}, timeout=30).json()

    job = start_job(released)
    for attempt, delay_s in enumerate([0.0, 0.005, 0.02, None]):
        api, before = serve(), client.xlen(LOG)
        batch = [
            {"event_id": f"k{attempt}-{n}", "user_id": f"k{n % 7}", "item_id": f"i{n % 30:04d}",
             "type": "view", "timestamp": time.time()}
            for n in range(1_000)
        ]  # fmt: skip
        by_log = threading.Thread(target=kill_once_logged, args=(client, before, api))
        killer = by_log if delay_s is None else threading.Timer(delay_s, kill, (api,))
        killer.start()
        with contextlib.suppress(httpx.TransportError):
            post(batch)
        killer.join()
        assert api.wait() == -signal.SIGKILL
        assert client.xlen(LOG) - before in (0, len(batch))  # all of a batch, or nothing
        api = serve()
        again = post(batch)
        assert again["accepted"] + again["duplicates"] == len(batch)
        sent += len(batch)
        kill(api)
        api.wait()
    wait_until(drained(released))
    stop_job(job)
    assert client.xlen(LOG) == stream_status(client).events == sent
    assert check(released, time.time()).differing == 0
