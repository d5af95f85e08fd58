"""Streaming, measured from outside: the real API, Redis and Spark job on a small world of its own.

Lag is the time from the answer 202 to a feature that Feast reads. At the end every feature is
compared with a recount of the log.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from feast import FeatureStore

from benchmarks.live import build_world, drain, event, live
from feature_repo import columns as c
from feature_repo.declarations.aggregate_views import definition_of
from feature_repo.stores.feature_store import feature_store, redis_client
from feature_repo.workspace import Workspace
from pipelines import display
from pipelines.operations.recount import check
from pipelines.streaming.status import stream_status
from serving.event_log.port import LogFull
from serving.event_log.redis_stream import RedisStreamLog

USERS = 10_000
_POLL_S = 0.01
_TEMPLATES = 50_021


class Probes:
    """Measures how long new users' first features take to be readable by Feast.

    Only the oldest user is polled, and all others once it is readable, so that polling does not
    occupy the cores.
    """

    def __init__(self, store: FeatureStore) -> None:
        self.lags: list[float] = []
        self._store = store
        self._waiting: dict[str, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)
        self._thread.start()

    def sent(self, user: str) -> None:
        """Begin to wait for a user whose event has been accepted now."""
        self._waiting[user] = time.time()

    def _poll(self) -> None:
        while not self._stop.wait(_POLL_S):
            users = list(self._waiting)
            if not users or not self._readable(users[:1]):
                continue
            readable = self._readable(users)
            now = time.time()
            self.lags += [(now - self._waiting.pop(user)) * 1_000 for user in readable]

    def _readable(self, users: list[str]) -> list[str]:
        rows = [{c.USER: user} for user in users]
        view = definition_of(self._store.get_stream_feature_view("user_history"))
        state = view.state_column
        features = self._store.get_online_features(
            [f"{view.name}:{state}"], entity_rows=rows
        ).to_dict()
        return [user for user, stored in zip(users, features[state], strict=True) if stored]

    def finish(self, patience_s: float = 60.0) -> list[float]:
        """Wait for the remaining probes and return the lags in milliseconds.

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
    rng = random.Random(1)
    probes = Probes(store)
    number = 0
    start = time.time()
    for tick in range(int(seconds * 20)):
        time.sleep(max(0.0, start + tick / 20 - time.time()))
        probe = f"probe-{start:.0f}-{tick}"
        users = [f"b{rng.randrange(USERS)}" for _ in range(rate // 20 - 1)]
        events = [event(number + offset, user, rng) for offset, user in enumerate([*users, probe])]
        number += len(events)
        answer = api.post("/v1/events", json={"events": events})
        if answer.json().get("accepted") != len(events):
            raise RuntimeError(f"events were not accepted: {answer.text[:300]}")
        probes.sent(probe)
    sent_s = time.time() - start
    lags = probes.finish()
    p50, p95 = np.percentile(lags, [50, 95])
    return {
        "lag_p50_ms": round(p50, 1),
        "lag_p95_ms": round(p95, 1),
        "steady_events_per_s": round(number / sent_s),
    }


def own_writes(api: httpx.Client, count: int = 100) -> dict[str, float]:
    """Click and ask at once as a new user each time; count the answers that lack the click."""
    times: list[float] = []
    missed = 0
    rng = random.Random(2)
    for number in range(count):
        click = event(number, f"own-{time.time():.0f}-{number}", rng)
        start = time.perf_counter()
        api.post("/v1/events", json={"events": [click]})
        features = api.get(f"/v1/users/{click['user_id']}/features").json()["features"]
        times.append((time.perf_counter() - start) * 1_000)
        missed += click["item_id"] not in features[c.HISTORY_ITEMS]
    return {
        "read_your_writes_ms": round(float(np.median(times)), 2),
        "read_your_writes_missed": missed,
    }


def endpoint(url: str, seconds: float, senders: int = 3) -> dict[str, float]:
    """Send batches of 100 as fast as they are accepted, over several connections of one process."""
    context = multiprocessing.get_context("spawn")
    queue: Any = context.Queue()
    process = context.Process(target=_pour, args=(url, seconds, senders, queue))
    process.start()
    accepted, elapsed_s = queue.get(timeout=seconds + 60)
    process.join()
    return {"endpoint_events_per_s": round(accepted / elapsed_s)}


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
                events = [
                    e | {"event_id": f"p{sender}-{batch}-{n}", "timestamp": now}
                    for n, e in enumerate(template)
                ]
                body = json.dumps({"events": events})
                answer = api.post(
                    "/v1/events", content=body, headers={"content-type": "application/json"}
                )
                counts[sender] += answer.json().get("accepted", 0)

    start = time.time()
    stop = start + seconds
    threads = [threading.Thread(target=send, args=(sender,)) for sender in range(senders)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    queue.put((sum(counts), time.time() - start))


def sustained(
    workspace: Workspace, store: FeatureStore, rate: int, seconds: float
) -> dict[str, float]:
    """Append ``rate`` events a second to the log and measure whether the job keeps up.

    ``events_per_s`` is the rate at which events left the job, from its first finished batch to its
    last.
    """
    client = redis_client(workspace)
    before = stream_status(client).events or 0
    context = multiprocessing.get_context("spawn")
    started = context.Event()
    feeder = context.Process(target=_feed, args=(workspace.root, rate, seconds, started))
    feeder.start()
    started.wait()
    probes = Probes(store)
    log = RedisStreamLog(workspace)
    rng = random.Random(5)
    start = time.time()
    done = [(0.0, 0)]
    while feeder.is_alive():
        time.sleep(0.5)
        user = f"heavy-{start:.0f}-{len(done)}"  # a user of whom no earlier run left anything
        log.append([event(len(done), user, rng)])
        probes.sent(user)
        done.append((time.time() - start, (stream_status(client).events or 0) - before))
    fed_s = time.time() - start
    lags = probes.finish(120)
    drain(workspace, 0.1)
    total_s = time.time() - start
    total = (stream_status(client).events or 0) - before
    first_s, first = next(((at, count) for at, count in done if count), (0.0, 0))
    third = len(lags) // 3
    return {
        "events_per_s": round((total - first) / (total_s - first_s)),
        "sustained_s": round(fed_s, 1),
        "sustained_offered_per_s": round(total / fed_s),
        "sustained_lag_p50_ms": round(float(np.median(lags))),
        "sustained_lag_max_ms": round(max(lags)),
        "sustained_lag_growth": round(
            float(np.mean(lags[-third:]) / np.mean(lags[third : 2 * third])), 2
        ),
        "drain_s": round(total_s - fed_s, 1),
    }


def _feed(root: Path, rate: int, seconds: float, started: Any) -> None:
    log = RedisStreamLog(Workspace(root))
    rng = random.Random(4)
    number = 0
    templates = [event(0, f"b{rng.randrange(USERS)}", rng) for _ in range(_TEMPLATES)]
    start = time.time()
    started.set()
    while (elapsed := time.time() - start) < seconds:
        due = min(int(elapsed * rate) - number, 500)
        if due < 100:
            time.sleep(0.005)
            continue
        now = time.time()
        numbers = range(number, number + due)
        try:
            log.append(
                [
                    {**templates[n % _TEMPLATES], "event_id": f"f{n}", "timestamp": now}
                    for n in numbers
                ]
            )
            number += due
        except LogFull:
            time.sleep(0.1)


def run(
    root: Path,
    *,
    rate: int,
    seconds: float,
    heavy_rate: int,
    heavy_seconds: float,
    partitions: int,
) -> dict[str, Any]:
    """Measure in a world below ``root`` and return the figures."""
    workspace = build_world(root)
    store = feature_store(workspace)
    job = ("--partitions", str(partitions))
    with live(workspace, *job) as url, httpx.Client(base_url=url, timeout=30) as api:
        with display.stage(f"{rate} events/s for {seconds:.0f} s"):
            figures = steady(api, store, rate, seconds)
        with display.stage("Read your writes"):
            figures |= own_writes(api)
        with display.stage("Endpoint"):
            figures |= endpoint(url, 8.0)
        drain(workspace)
        with display.stage(f"{heavy_rate} events/s for {heavy_seconds:.0f} s"):
            figures |= sustained(workspace, store, heavy_rate, heavy_seconds)
        with display.stage("Recount"):
            recount = check(workspace, time.time())
    return {
        **figures,
        "lost": recount.lost,
        "doubled": recount.doubled,
        "differing": recount.differing,
    }
