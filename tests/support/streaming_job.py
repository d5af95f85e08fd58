"""The real streaming job in a process of its own, fed while it runs, killed where a test asks."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from feature_repo.stores.feature_store import redis_client
from pipelines.streaming.status import stream_status
from serving.event_log.redis_stream import RedisStreamLog
from serving.online.features import OnlineStoreUnavailable

QUICK_JAVA = {"SPARK_SUBMIT_OPTS": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"}
"""Environment in which Spark starts Java without its optimizing compiler."""

CRASH_POINTS = (
    "batch-start", "before-online", "within-online", "after-online", "before-rename",
    "within-offline", "after-offline", "after-dead-letters", "batch-end", "after-commit",
)  # fmt: skip

_CRASHING_JOB = """
import os, signal, sys, threading
from pipelines.streaming import offline, sink
from pipelines.streaming.lease import Lease
from pipelines.commands.cli import main

points, home = sys.argv[1].split(), sys.argv[2]
batches = 0

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def reach(point):
    global batches
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
    global batches
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
sys.argv = ["funnel", "stream", "--home", home]
main()
"""


started = []


def start_job(workspace, *crash_points):
    """Start the job; a batch crashes at each point but the last, at which the process is killed.

    A crashed batch ends the query, which the job then restarts from its checkpoint.
    """
    return _start(
        workspace, "job.log", [_CRASHING_JOB, " ".join(crash_points), str(workspace.root)]
    )


def start_api(workspace, port):
    command = "from pipelines.commands.cli import main; main()"
    return _start(
        workspace, "api.log", [command, "serve", "--home", str(workspace.root), "--port", str(port)]
    )


def _start(workspace, log, arguments):
    with (workspace.root / log).open("ab") as out:
        command = [sys.executable, "-c", *arguments]
        started.append(
            subprocess.Popen(command, stdout=out, stderr=out, env=os.environ | QUICK_JAVA)
        )
    return started[-1]


def kill(process):
    """Kill a process and its children, as a crash of the machine does."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    pids = [int(pid) for pid in children.read_text().split()] if children.exists() else []
    process.kill()
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


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
                    assert answer.accepted + answer.duplicates == len(events)
                    log.append(events[:3])  # the same again
                    break
                except OnlineStoreUnavailable:
                    time.sleep(0.2)
            self.malformed += batch % 10 == 0
            self.accepted += len(events) - (batch % 10 == 0)

    def stop(self):
        self._stop.set()
        self._thread.join()
