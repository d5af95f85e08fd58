"""Soak test: the memory of all server processes, every few seconds under a long load."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.live import free_port, running
from benchmarks.load import encode_requests, load
from benchmarks.serving import K, active_users, memory, ready
from feature_repo.files import read_json
from feature_repo.workspace import Workspace
from pipelines import display

_SAMPLE_EVERY_S = 5.0
_PART_S = 60.0
_WARM_UP = 0.2
"""Share of the time after which growth counts."""


def run(root: Path, minutes: float, rate: float, workers: int) -> dict[str, Any]:
    """Load the current release of a workspace and return how its memory grew.

    Growth is that of a straight line through all samples after the warm-up, as a share of the
    line's beginning.
    """
    workspace = Workspace(root)
    port = free_port()
    users = active_users(workspace)
    item = read_json((workspace.releases / "current").resolve() / "codec.json")["items"][0]
    variants: list[dict[str, Any]] = [{}, {"exclude": [item]}, {"k": 50}, {"explain": True, "k": 3}]
    bodies = [
        json.dumps({"user_id": user, "k": K, **variants[number % len(variants)]}).encode()
        for number, user in enumerate([*users, *(f"nobody-{n}" for n in range(200))])
    ]
    samples: list[tuple[float, int]] = []
    statuses: Counter[int] = Counter()
    command = ["serve", "--home", str(root), "--port", str(port), "--workers", str(workers)]
    with running(command, root / "soak.log") as process, display.stage("Soak") as progress:
        ready(port)
        stop = threading.Event()
        start = time.time()

        def sample_memory() -> None:
            while not stop.wait(_SAMPLE_EVERY_S):
                samples.append((time.time() - start, memory(process.pid)["anonymous"]))

        thread = threading.Thread(target=sample_memory)
        thread.start()
        requests = encode_requests("/v1/recommendations", bodies)
        while (passed := time.time() - start) < minutes * 60:
            part = load(
                port,
                requests,
                connections=8,
                seconds=min(_PART_S, minutes * 60 - passed + 1),
                rate=rate,
            )
            statuses += part.statuses
            progress("minutes", round((time.time() - start) / 60), round(minutes))
        stop.set()
        thread.join()

    # A straight line through seconds and bytes after the warm-up, [samples, 2].
    points = np.array([sample for sample in samples if sample[0] >= _WARM_UP * minutes * 60])
    slope, first = np.polyfit(points[:, 0] - points[0, 0], points[:, 1], 1)
    growth = slope * (points[-1, 0] - points[0, 0])
    return {
        "minutes": minutes,
        "requests": sum(statuses.values()),
        "statuses": {str(status): count for status, count in sorted(statuses.items())},
        "start_bytes": round(float(first)),
        "end_bytes": round(float(first + growth)),
        "growth": round(float(growth / first), 4),
    }
