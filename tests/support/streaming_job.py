"""The real streaming job: in a thread of the test, or in a process that a test kills.

Java starts once for all jobs in threads of a test process; a process of its own costs half a minute
of a core, so only tests that kill have one.
"""

import contextlib
import os
import random
import signal
import threading
import time

from feature_repo.stores.feature_store import redis_client
from pipelines.streaming.job import StreamConfig, StreamJob
from pipelines.streaming.status import stream_status
from serving.event_log.redis_stream import RedisStreamLog
from serving.online.features import OnlineStoreUnavailable
from tests.support import forked
from tests.support.forked import kill
from tests.support.waiting import wait_until

CRASH_POINTS = (
    "batch-start", "before-online", "within-online", "after-online", "before-rename",
    "within-offline", "after-offline", "after-dead-letters", "batch-end", "after-commit",
)  # fmt: skip


def crash_at(points, home):
    """Run ``funnel stream``, in which the second batch crashes at each point but the last.

    There the process is killed. The job restarts a crashed batch from its checkpoint.
    """
    from pipelines.streaming import offline, sink
    from pipelines.streaming.lease import Lease

    points, batches = list(points), 0

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    def reach(point):
        nonlocal batches
        if batches < 2 or points[:1] != [point]:
            return
        if len(points) == 1:
            die()
        points.pop(0)
        batches = 0
        raise RuntimeError(f"crashed at {point}")

    def around(owner, name, before=None, after=None):
        original = getattr(owner, name)

        def patched(*args, **kwargs):
            reach(before)
            result = original(*args, **kwargs)
            reach(after)
            return result

        setattr(owner, name, patched)

    def write(self, changes, batch, started, original=sink.Sink.write):
        nonlocal batches
        batches += "event" in changes["what"].to_pylist()
        reach("batch-start")
        original(self, changes, batch, started)
        if batches > 1 and points in (["batch-end"], ["after-commit"]):
            threading.Timer(0.0 if points == ["batch-end"] else 0.2, die).start()

    sink._ROWS_PER_TRANSACTION = 2
    sink.Sink.write = write
    around(sink.Sink, "write_online", before="before-online", after="after-online")
    around(Lease, "write", after="within-online")
    around(sink, "write_part", after="within-offline")
    around(offline.os, "replace", before="before-rename")
    around(sink.Sink, "write_offline", after="after-offline")
    around(sink.Sink, "write_dead_letters", after="after-dead-letters")
    forked.command("stream", "--home", home)


started = []


def start_job(workspace, *crash_points):
    """Start ``funnel stream`` in a process; see ``crash_at`` for the crash points."""
    log = workspace.root / "job.log"
    started.append(forked.Forked(crash_at, crash_points, workspace.root, out=log))
    return started[-1]


def start_api(workspace, port):
    log = workspace.root / "api.log"
    arguments = ("serve", "--home", workspace.root, "--port", port)
    started.append(forked.Forked(forked.command, *arguments, out=log))
    return started[-1]


@contextlib.contextmanager
def streaming(workspace, *, rebuild=False):
    """Run the job in a thread until the body ends; yields a function that waits until it drained.

    An error of the job is raised by that function, or at the end. ``rebuild``: with a new
    checkpoint from the offline tables.
    """
    job, errors = StreamJob(workspace, StreamConfig()), []

    def work():
        try:
            job.run(rebuild)
        except BaseException as error:
            errors.append(error)

    def wait_until_drained():
        finished = drained(workspace)
        wait_until(lambda: bool(errors) or finished(), what="for the job")
        assert not errors, errors

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield wait_until_drained
    finally:
        job.stop()
        thread.join()
    assert not errors, errors


def kill_started():
    while started:
        process = started.pop()
        kill(process)
        process.wait()


def stop_job(process):
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=240) == 0


def drained(workspace):
    def nothing_waits():
        try:
            return stream_status(redis_client(workspace)).pending == 0
        except OSError:
            return False

    return nothing_waits


class Feeder:
    """Sends events without pause, 1% malformed; unanswered ones are sent again with their ids."""

    def __init__(self, workspace, users, items, types, rate=100):
        self.accepted = self.malformed = 0
        self._workspace, self._names, self._rate = workspace, (users, items, types), rate
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._feed)
        self._thread.start()

    def _feed(self):
        users, items, types = self._names
        rng, log, batch = random.Random(os.getpid()), RedisStreamLog(self._workspace), 0
        while not self._stop.wait(10 / self._rate):
            batch += 1
            now = time.time() + rng.choice(
                [0, 0, 0, -3_600, 3_600, -300_000]
            )  # clocks are wrong, events are late
            events = [
                {"event_id": f"{id(self)}-{batch}-{n}", "user_id": rng.choice(users),
                 "item_id": rng.choice(items), "type": rng.choice(types), "timestamp": now}
                for n in range(10)
            ]  # fmt: skip
            if batch % 10 == 0:
                events[-1] |= rng.choice(
                    [{"type": "stare"}, {"item_id": 7}, {"timestamp": "soon"}, {"value": "much"}]
                )
            while True:
                try:
                    answer = log.append(events)
                    assert answer.accepted + len(answer.duplicates) == len(events)
                    log.append(events[:3])  # the same again
                    break
                except OnlineStoreUnavailable:
                    time.sleep(0.2)
            self.malformed += batch % 10 == 0
            self.accepted += len(events) - (batch % 10 == 0)

    def stop(self):
        self._stop.set()
        self._thread.join()
