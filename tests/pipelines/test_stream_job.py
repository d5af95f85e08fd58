"""The real job over the real log: it agrees with Spark batch, and every event counts once wherever it is killed."""

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
from feature_repo.stores.embedded_redis import ensure_running, socket_path
from feature_repo.stores.feature_store import redis_client
from pipelines.ingest.ingest import event_files, read_events
from pipelines.operations.recount import check
from pipelines.streaming.sink import DEAD_LETTERS
from pipelines.streaming.status import stream_status
from pipelines.workflow.stages import run_features, run_materialize
from serving.event_log.redis_stream import RedisStreamLog
from tests.support.streaming_job import (
    PLACES,
    Feeder,
    drained,
    kill,
    kill_started,
    start_api,
    start_job,
    stop_job,
    wait_until,
)


@pytest.fixture(autouse=True)
def no_job_stays(copied):
    yield copied  # which goes after the job: its Redis stays for as long as somebody uses it
    kill_started()


CI_PLACES = ("within-online", "within-offline", "batch-end")


def without_last_day(workspace):
    """Take the last day's events out of the ingested ones and return them."""
    events = read_events(workspace)
    cut = events[c.TIMESTAMP].max() - (events[c.TIMESTAMP].max() - events[c.TIMESTAMP].min()) / 30
    for name in event_files(workspace):
        table = pq.read_table(name, partitioning=None)
        pq.write_table(table.filter(pc.less(table[c.TIMESTAMP], pa.scalar(cut))), name)
    return events[events[c.TIMESTAMP] >= cut]


def newest_rows(folder, key):
    rows = pa.concat_tables(
        [pq.read_table(path) for path in folder.glob("*.parquet")], promote_options="permissive"
    )
    frame = (
        rows.to_pandas()
        .sort_values(c.EVENT_TIMESTAMP, kind="stable")
        .groupby(key)
        .tail(1)
        .set_index(key)
    )
    return frame.drop(columns=[c.EVENT_TIMESTAMP, c.POSITION], errors="ignore").sort_index()


def plain(frame):
    return {
        key: {name: list(value) for name, value in row.items()}
        for key, row in frame.to_dict("index").items()
    }


def send(workspace, events):
    log = RedisStreamLog(workspace)
    rows = [
        {"event_id": row.event_id, "user_id": row.user_id, "item_id": row.item_id, "type": row.type,
         "timestamp": row.timestamp.timestamp()}
        for row in events.itertuples()
    ]  # fmt: skip
    for start in range(0, len(rows), 500):
        log.append(rows[start : start + 500])
    return len(rows)


def test_stream_and_batch_agree_on_every_value(built, copied):
    whole = built.workspace.features
    late = without_last_day(copied)
    (copied.root / "features" / "current").unlink()
    run_features(copied)
    run_materialize(copied)
    sent = send(
        copied, late.sample(frac=1.0, random_state=1)
    )  # in no order: late events go where they belong
    assert sent > 200
    client = redis_client(copied)
    client.xadd(LOG, {"event": "not an event"})
    client.xadd(
        LOG,
        {"event": json.dumps({"user_id": "u", "item_id": "i", "event_id": "e", "type": "stare"})},
    )
    job = start_job(copied)
    wait_until(drained(copied))
    status = stream_status(client)
    assert (status["events"], status["poison"], status["running"]["pid"]) == (sent, 2, job.pid)
    assert "unknown type 'stare'" in client.xrange(DEAD_LETTERS)[1][1][b"reason"].decode()
    stop_job(job)
    assert stream_status(client)["running"] is None
    for table, key in (("user_history", c.USER), ("user_recent", c.USER), ("item_recent", c.ITEM)):
        assert plain(newest_rows(copied.features / table, key)) == plain(
            newest_rows(whole / table, key)
        )
    found = check(copied, time.time())
    assert (found.differing, found.examples) == (0, [])
    before = redis_client(copied).dbsize()
    run_materialize(copied)  # older rows of the batch do not replace what the stream wrote
    assert check(copied, time.time()).differing == 0 and redis_client(copied).dbsize() == before


def survive(workspace, places, trouble=None):
    """Kill the job at each place under load, then let it finish; every accepted event counts once."""
    run_materialize(workspace)
    spec = workspace.spec()
    feeder = Feeder(
        workspace, [f"n{n}" for n in range(40)], [f"i{n:04d}" for n in range(30)], spec.event_types
    )
    try:
        for place in places:
            job = start_job(workspace, place)
            assert job.wait(timeout=300) == -signal.SIGKILL, (
                workspace.root / "job.log"
            ).read_text()[-3_000:]
        job = start_job(workspace)
        if trouble:
            trouble(workspace, job)
        time.sleep(3)
    finally:
        feeder.stop()
    wait_until(drained(workspace), what=(workspace.root / "job.log").read_text()[-2_000:])
    stop_job(job)
    client = redis_client(workspace)
    status = stream_status(client)
    assert feeder.malformed > 0
    assert client.xlen(LOG) == feeder.accepted + feeder.malformed
    assert (status["events"], status["poison"]) == (feeder.accepted, feeder.malformed)
    assert status["dead_letters"] == feeder.malformed
    assert client.get(COMMITTED) is not None
    found = check(workspace, time.time())
    assert (found.lost, found.doubled, found.differing, found.examples) == (0, 0, 0, [])


def test_killed_in_the_middle_of_its_writes(copied):
    survive(copied, CI_PLACES)


def kill_and_pause_redis(workspace, job):
    wait_until(
        lambda: (stream_status(redis_client(workspace))["running"] or {}).get("pid") == job.pid
    )
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
    assert job.poll() is None


@pytest.mark.faults
def test_killed_at_every_place(copied):
    survive(copied, PLACES)


@pytest.mark.faults
def test_redis_killed_and_paused(copied):
    survive(copied, [], kill_and_pause_redis)


def kill_once_logged(client, before, api):
    """Kill the API as soon as its request is in the log, most likely before it has answered."""
    while client.xlen(LOG) == before:
        pass
    kill(api)


@pytest.mark.faults
def test_the_api_is_killed_in_the_middle_of_a_batch(copied):
    """The sender repeats what was not answered, as it is told to; each event is in the log once."""
    run_materialize(copied)
    client, sent = redis_client(copied), 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"

    def serve():
        def ready():
            with contextlib.suppress(httpx.TransportError):
                return httpx.get(f"{url}/readyz").status_code == 200

        api = start_api(copied, url.rpartition(":")[2])
        wait_until(ready, what=(copied.root / "api.log").read_text()[-2_000:])
        return api

    def post(batch):
        return httpx.post(f"{url}/v1/events", json={"events": batch}, timeout=30).json()

    job = start_job(copied)
    for attempt, delay_s in enumerate([0.0, 0.005, 0.02, None]):
        api, before = serve(), client.xlen(LOG)
        batch = [
            {"event_id": f"k{attempt}-{n}", "user_id": f"k{n % 7}", "item_id": f"i{n % 30:04d}", "type": "view",
             "timestamp": time.time()}
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
    wait_until(drained(copied))
    stop_job(job)
    assert client.xlen(LOG) == stream_status(client)["events"] == sent
    assert check(copied, time.time()).differing == 0


def test_a_second_job_says_who_works_already(copied):
    run_materialize(copied)
    assert socket_path(copied.redis).exists()
    job = start_job(copied)
    wait_until(lambda: stream_status(redis_client(copied))["running"])
    second = start_job(copied)
    assert second.wait(timeout=240) == 1
    assert f"process {job.pid}" in (copied.root / "job.log").read_text()
