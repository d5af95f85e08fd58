"""Streaming, measured from outside: the real API, Redis and Spark job on a small world of its own.

Lag is the time from the answer 202 to a feature that Feast reads; every number comes from events that
were sent on their way for it, and at the end every feature is compared with a recount of the log.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from feast import FeatureStore

from feature_repo import columns as c
from feature_repo.dataset import load_spec
from feature_repo.store import feature_store, redis_client
from feature_repo.workspace import Workspace
from pipelines import display, stages
from pipelines.ingest import ingest
from pipelines.release import make_release
from pipelines.streaming.recount import check
from pipelines.streaming.status import stream_status
from pipelines.synthetic import generate
from pipelines.train import train
from pipelines.train_ranking import SampleConfig
from pipelines.world import WorldConfig
from ranking.config import DcnConfig, RankerConfig, TreeConfig
from retrieval.training import TrainConfig
from serving.events import LogFull, RedisStreamLog

USERS, ITEMS = 10_000, 2_000
_POLL_S = 0.01


def build_world(root: Path) -> Workspace:
    """Return a small world in ``root``, taken through every stage; a finished one is kept."""
    workspace = Workspace(root)
    if (workspace.releases / "current").exists():
        stages.run_materialize(workspace)
        return workspace
    generate(root / "raw", WorldConfig(users=400, items=250, days=60, seed=11, events_per_user=50.0))
    ingest(load_spec(stages.SPECS / "synthetic.toml"), root / "raw", workspace, shift_to_now=True)
    stages.run_features(workspace)
    stages.run_materialize(workspace)
    towers = TrainConfig(epochs=2, batch=512, uniform_negatives=128, patience=1, validation_sample=500)
    sample = SampleConfig(train_requests=400, calibrate_requests=150, choose_requests=150, negatives=40)
    rankers = RankerConfig(trees=TreeConfig(rounds=20), dcn=DcnConfig(epochs=1, min_steps=30))
    with display.stage("Train") as progress:
        train(workspace, progress, towers, sample, rankers)
    make_release(workspace)
    return workspace


@contextmanager
def running(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a ``funnel`` command beside, and end it."""
    call = [sys.executable, "-c", "from pipelines.cli import main; main()", *command]
    with log.open("wb") as out:
        process = subprocess.Popen(call, stdout=out, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            process.terminate()
            process.wait(timeout=60)


def event(number: int, user: str, rng: random.Random) -> dict[str, Any]:
    """Return an event of now."""
    kind = rng.choices(["view", "like", "purchase"], [8, 1, 1])[0]
    item = f"b{int(ITEMS * rng.random() ** 2):04d}"
    return {"event_id": f"b{number}-{user}", "user_id": user, "item_id": item, "type": kind, "timestamp": time.time()}


class Probes:
    """Waits for features of users that never had any: from a given moment to when Feast reads the first."""

    def __init__(self, store: FeatureStore) -> None:
        self.lags: list[float] = []
        self._store, self._waiting, self._stop = store, dict[str, float](), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def sent(self, user: str) -> None:
        """Begin to wait for a user whose event has been accepted now."""
        self._waiting[user] = time.time()

    def _watch(self) -> None:
        while not self._stop.wait(_POLL_S):
            users = list(self._waiting)
            if not users:
                continue
            rows = [{c.USER: user} for user in users]
            found = self._store.get_online_features([f"user_recent:{c.POSITION}"], entity_rows=rows).to_dict()
            now = time.time()
            for user, position in zip(users, found[c.POSITION], strict=True):
                if position is not None:
                    self.lags.append((now - self._waiting.pop(user)) * 1_000)

    def finish(self, patience_s: float = 60.0) -> list[float]:
        """Wait for what is on its way and return the lags in milliseconds.

        Raises:
            RuntimeError: a probe never arrived.

        """
        deadline = time.time() + patience_s
        while self._waiting and time.time() < deadline:
            time.sleep(0.05)
        self._stop.set()
        self._thread.join()
        if self._waiting:
            raise RuntimeError(f"{len(self._waiting)} probes never arrived")
        return self.lags


def steady(api: httpx.Client, store: FeatureStore, rate: int, seconds: float) -> dict[str, float]:
    """Send ``rate`` events a second, twenty requests a second, one event of each a probe."""
    rng, probes, number = random.Random(1), Probes(store), 0
    start = time.time()
    for tick in range(int(seconds * 20)):
        time.sleep(max(0.0, start + tick / 20 - time.time()))
        probe = f"probe-{start:.0f}-{tick}"
        users = [f"b{rng.randrange(USERS)}" for _ in range(rate // 20 - 1)]
        events = [event(number + place, user, rng) for place, user in enumerate([*users, probe])]
        number += len(events)
        answer = api.post("/v1/events", json={"events": events})
        if answer.json().get("accepted") != len(events):
            raise RuntimeError(f"events were not accepted: {answer.text[:300]}")
        probes.sent(probe)
    sent_s = time.time() - start
    lags = probes.finish()
    p50, p95 = np.percentile(lags, [50, 95])
    return {"lag_p50_ms": round(p50, 1), "lag_p95_ms": round(p95, 1), "steady_events_per_s": round(number / sent_s)}


def own_writes(api: httpx.Client, count: int = 100) -> dict[str, float]:
    """Click and ask at once, as a new user each time; count the answers that do not know the click."""
    times, missed = [], 0
    rng = random.Random(2)
    for number in range(count):
        click = event(number, f"own-{time.time():.0f}-{number}", rng)
        start = time.perf_counter()
        api.post("/v1/events", json={"events": [click]})
        features = api.get(f"/v1/users/{click['user_id']}/features").json()["features"]
        times.append((time.perf_counter() - start) * 1_000)
        missed += click["item_id"] not in features[c.HISTORY_ITEMS]
    return {"read_your_writes_ms": round(float(np.median(times)), 2), "read_your_writes_missed": missed}


def endpoint(url: str, seconds: float, senders: int = 3) -> dict[str, float]:
    """Send batches of 100 as fast as they are taken, from several connections of one process beside."""
    context = multiprocessing.get_context("spawn")
    queue: Any = context.Queue()
    process = context.Process(target=_pour, args=(url, seconds, senders, queue))
    process.start()
    accepted, took = queue.get(timeout=seconds + 60)
    process.join()
    return {"endpoint_events_per_s": round(accepted / took)}


def _pour(url: str, seconds: float, senders: int, queue: Any) -> None:
    counts = [0] * senders
    rng = random.Random(3)
    template = [event(0, f"b{rng.randrange(USERS)}", rng) for _ in range(100)]

    def send(sender: int) -> None:
        with httpx.Client(base_url=url, timeout=30) as api:
            batch = 0
            while time.time() < stop:
                batch += 1
                now = time.time()
                events = [e | {"event_id": f"p{sender}-{batch}-{n}", "timestamp": now} for n, e in enumerate(template)]
                body = json.dumps({"events": events})
                answer = api.post("/v1/events", content=body, headers={"content-type": "application/json"})
                counts[sender] += answer.json().get("accepted", 0)

    start = time.time()
    stop = start + seconds
    threads = [threading.Thread(target=send, args=(sender,)) for sender in range(senders)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    queue.put((sum(counts), time.time() - start))


def sustained(workspace: Workspace, store: FeatureStore, rate: int, seconds: float) -> dict[str, float]:
    """Append ``rate`` events a second to the log and see whether the job keeps up: its lag, and the rest at the end."""
    client = redis_client(workspace)
    before = stream_status(client)["events"]
    context = multiprocessing.get_context("spawn")
    feeder = context.Process(target=_feed, args=(workspace.root, rate, seconds))
    probes, log = Probes(store), RedisStreamLog(workspace)
    rng, start, number = random.Random(5), time.time(), 0
    feeder.start()
    while feeder.is_alive():
        time.sleep(0.5)
        user = f"heavy-{start:.0f}-{number}"  # a user of whom no earlier run left anything
        log.append([event(number, user, rng)])
        probes.sent(user)
        number += 1
    fed_s = time.time() - start
    lags = probes.finish(120)
    while stream_status(client)["pending"]:
        time.sleep(0.1)
    total_s = time.time() - start
    done = stream_status(client)["events"] - before
    return {
        "events_per_s": round(done / total_s),
        "sustained_s": round(fed_s, 1),
        "sustained_offered_per_s": round(done / fed_s),
        "sustained_lag_p50_ms": round(float(np.median(lags))),
        "sustained_lag_max_ms": round(max(lags)),
        "drain_s": round(total_s - fed_s, 1),
    }


def _feed(root: Path, rate: int, seconds: float) -> None:
    log, rng, number = RedisStreamLog(Workspace(root)), random.Random(4), 0
    start = time.time()
    while (passed := time.time() - start) < seconds:
        due = min(int(passed * rate) - number, 500)
        if due < 100:
            time.sleep(0.005)
            continue
        events = [event(number + n, f"b{rng.randrange(USERS)}", rng) for n in range(due)]
        try:
            log.append([e | {"event_id": f"f{number + n}"} for n, e in enumerate(events)])
            number += due
        except LogFull:
            time.sleep(0.1)


def run(root: Path, rate: int, seconds: float, heavy_rate: int, heavy_seconds: float) -> dict[str, Any]:
    """Measure in a world below ``root`` and return the figures."""
    workspace = build_world(root)
    client, store = redis_client(workspace), feature_store(workspace)
    client.flushall()  # an earlier run's events, with its checkpoint and the rows that it appended
    shutil.rmtree(root / "stream", ignore_errors=True)
    for rows in root.glob("features/current/*/stream-*.parquet"):
        rows.unlink()
    stages.run_materialize(workspace)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    home = ["--home", str(root)]
    with (
        running(["serve", *home, "--port", str(port)], root / "serve.log"),
        running(["stream", *home], root / "stream.log"),
        httpx.Client(base_url=url, timeout=30) as api,
    ):
        _wait(api, client)
        with display.stage(f"{rate} events/s for {seconds:.0f} s"):
            figures = steady(api, store, rate, seconds)
        with display.stage("Read your writes"):
            figures |= own_writes(api)
        with display.stage("Endpoint"):
            figures |= endpoint(url, 8.0)
        while stream_status(client)["pending"]:
            time.sleep(0.2)
        with display.stage(f"{heavy_rate} events/s for {heavy_seconds:.0f} s"):
            figures |= sustained(workspace, store, heavy_rate, heavy_seconds)
        with display.stage("Recount"):
            found = check(workspace, time.time())
    return {**figures, "lost": found.lost, "doubled": found.doubled, "differing": found.differing}


def _wait(api: httpx.Client, client: Any) -> None:
    """Wait until the API answers and the job has finished batches."""
    rng, deadline = random.Random(6), time.time() + 180
    number = 0
    while time.time() < deadline:
        try:
            api.post("/v1/events", json={"events": [event(number, f"warm-{number}", rng)]})
            number += 1
            if (stream_status(client)["batch"] or [0, 0])[1] >= 30:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise RuntimeError("the API or the job did not start; see serve.log and stream.log in the working folder")
