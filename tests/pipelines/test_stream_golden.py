"""A checkpoint that an earlier version of the code wrote: nothing of it is lost or mixed up.

``tests/data/stream_checkpoint_97f4b5b.tar.xz`` is a working folder as the code of commit 97f4b5b
left it: events of 8 ingested users, the feature tables, Redis' append-only file and the job's
checkpoint. The job had finished a batch of 40 log entries (one malformed). It was killed in its
second batch of 30 entries (one malformed), after the online and offline writes and before the
commit. Then 20 more events were accepted. So the job must repeat a batch without counting it
twice, and go on.
"""

import os
import signal
import tarfile
import threading
from pathlib import Path

import pytest

from feature_repo.files import read_json
from feature_repo.stores.embedded_redis import release as stop_redis
from feature_repo.stores.feature_store import apply, feature_store, redis_client
from feature_repo.workspace import Workspace
from pipelines.operations.recount import check
from pipelines.streaming.offline import read_archive
from pipelines.streaming.status import stream_status
from serving.event_log.port import Appended
from serving.event_log.redis_stream import RedisStreamLog
from tests.support.command_line import funnel
from tests.support.streaming_job import drained
from tests.support.waiting import wait_until

ARCHIVE = Path(__file__).parent.parent / "data" / "stream_checkpoint_97f4b5b.tar.xz"


@pytest.fixture
def stored(tmp_path):
    """The stored working folder, unpacked.

    Its feature registry is rebuilt, as it has full paths.
    """
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    workspace = Workspace(tmp_path)
    apply(feature_store(workspace), workspace)
    yield workspace
    stop_redis(workspace.redis)


def stream_until_drained(workspace):
    """Run ``funnel stream`` here, and end it by SIGTERM when nothing waits, or after minutes."""

    def stop():
        try:
            wait_until(drained(workspace), patience_s=300)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    stopper = threading.Thread(target=stop)
    stopper.start()
    try:
        return funnel("stream", "--home", workspace.root)
    finally:
        stopper.join()
        for number, handler in handlers.items():
            signal.signal(number, handler)


@pytest.mark.faults
def test_the_job_continues_from_an_old_checkpoint(stored):
    client = redis_client(stored)
    generation = read_json(stored.root / "stream" / "generation.json")
    before = stream_status(client)
    assert (before.events, before.poison, before.pending) == (39, 1, 50)
    newest = read_archive(stored)["timestamp"].to_pylist()[-1].timestamp()
    further = [
        {"event_id": f"further-{n}", "user_id": f"n{n % 9}", "item_id": f"i{n % 11:04d}",
         "type": "view", "timestamp": newest + n}
        for n in range(25)
    ]  # fmt: skip
    accepted = RedisStreamLog(stored).append([*further, *further[:5]])
    assert accepted == Appended(25, (25, 26, 27, 28, 29))

    ended = stream_until_drained(stored)
    assert ended.returncode == 0, ended.stderr

    after = stream_status(client)
    assert (after.events, after.poison, after.dead_letters) == (39 + 29 + 20 + 25, 2, 2)
    assert read_json(stored.root / "stream" / "generation.json") == generation
    events = read_archive(stored)
    assert len(events) == len(set(events["event_id"].to_pylist())) == after.events
    recount = check(stored, max(events["timestamp"].to_pylist()).timestamp() + 1)
    assert recount.users == 8 + 9
    assert (recount.lost, recount.doubled, recount.differing, recount.examples) == (0, 0, 0, [])
