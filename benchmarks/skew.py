"""Skew of a live system: recommendations beside events, then every logged feature recomputed."""

from __future__ import annotations

import random
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq

from benchmarks.live import build_world, drain, event, live
from feature_repo import columns as c
from feature_repo.workspace import Workspace
from pipelines import display
from pipelines.operations.skew import newest_impressions, skew

EVENTS_PER_S = 100
_CLIENTS = 4
_CLOCKS = [0.0] * 7 + [-0.9, 200.0, -3_600.0, -300_000.0]
"""Errors of senders' clocks in seconds: events from the future, and late ones."""


class Visitors:
    """Users who ask and click: users of the data, users new to the stream, and unknown ones."""

    def __init__(self, workspace: Workspace) -> None:
        known, items = (
            pq.read_table(workspace.ingest / f"{table}.parquet", columns=[key])[key].to_pylist()
            for table, key in (("users", c.USER), ("items", c.ITEM))
        )
        self._clickers = [*known, *(f"new-{n}" for n in range(200))]
        self._askers = [*self._clickers, *(f"nobody-{n}" for n in range(20))]
        self._items = items

    def click(self, number: int, rng: random.Random) -> dict[str, Any]:
        """Return an event on an item of the data, by a clock that may be wrong."""
        click = event(number, rng.choice(self._clickers), rng)
        timestamp = click["timestamp"] + rng.choice(_CLOCKS)
        return click | {"item_id": rng.choice(self._items), "timestamp": timestamp}

    def asker(self, rng: random.Random) -> str:
        """Return who asks next."""
        return rng.choice(self._askers)


def run(root: Path, requests: int) -> dict[str, Any]:
    """Serve requests in a world below ``root``, recompute them and return the figures."""
    workspace = build_world(root)
    shutil.rmtree(workspace.impressions, ignore_errors=True)
    visitors = Visitors(workspace)
    with live(workspace) as url:
        with display.stage(f"{requests} requests beside {EVENTS_PER_S} events/s"):
            figures = _visit(url, visitors, requests)
        drain(workspace)
    impressions = newest_impressions(workspace, None, None)
    start = time.time()
    with display.stage("Skew") as progress:
        skewed = skew(workspace, impressions, progress).figures()
    positions = impressions.select(["position", "row_position"]).to_pylist()
    merged = [row for row in positions if row["position"] != row["row_position"]]
    return {
        **skewed,
        "with_overlay": len(merged),
        "seconds": round(time.time() - start, 1),
        **figures,
    }


def _visit(url: str, visitors: Visitors, requests: int) -> dict[str, Any]:
    """Ask for recommendations from several connections while one more sends events."""
    done = threading.Event()
    accepted = 0

    def click() -> None:
        nonlocal accepted
        rng = random.Random(7)
        start = time.time()
        number = 0
        with httpx.Client(base_url=url, timeout=30) as api:
            while not done.is_set():
                time.sleep(max(0.0, start + number / EVENTS_PER_S - time.time()))
                events = [
                    visitors.click(number + offset, rng) for offset in range(EVENTS_PER_S // 20)
                ]
                accepted += api.post("/v1/events", json={"events": events}).json()["accepted"]
                number += len(events)

    def ask(client: int) -> None:
        rng = random.Random(100 + client)
        with httpx.Client(base_url=url, timeout=30) as api:
            for _ in range(client, requests, _CLIENTS):
                body = {"user_id": visitors.asker(rng), "k": 10}
                api.post("/v1/recommendations", json=body).raise_for_status()

    start = time.time()
    with ThreadPoolExecutor(_CLIENTS + 1) as pool:
        clicking = pool.submit(click)
        try:
            list(pool.map(ask, range(_CLIENTS)))
        finally:
            done.set()
        clicking.result()
    seconds = time.time() - start
    return {
        "requests_per_s": round(requests / seconds, 1),
        "events_per_s": round(accepted / seconds, 1),
    }
