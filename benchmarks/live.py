"""A small world with the real API, Redis and Spark job, for benchmarks from outside."""

from __future__ import annotations

import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from feature_repo.events.stored import StoredEvent
from feature_repo.stores.feature_store import redis_client
from feature_repo.workspace import Workspace
from pipelines import display
from pipelines.ingest.ingest import ingest
from pipelines.streaming.status import stream_status
from pipelines.synthetic.generate import generate
from pipelines.synthetic.world import WorldConfig
from pipelines.training.config import SampleConfig
from pipelines.training.release import make_release
from pipelines.training.train import TrainSettings, train
from pipelines.workflow import stages
from pipelines.workflow.data_sets import find_spec
from ranking.config import DcnConfig, RankerConfig, TreeConfig
from retrieval.towers.config import TowerTrainingConfig

ITEMS = 2_000


def build_world(root: Path) -> Workspace:
    """Return a small world in ``root``, taken through every stage; a finished one is kept."""
    workspace = Workspace(root)
    if (workspace.releases / "current").exists():
        return workspace
    generate(
        root / "raw", WorldConfig(users=400, items=250, days=60, seed=11, events_per_user=50.0)
    )
    ingest(find_spec("synthetic"), root / "raw", workspace, shift_to_now=True)
    stages.run_features(workspace)
    stages.run_materialize(workspace)
    towers = TowerTrainingConfig(
        epochs=2, batch=512, uniform_negatives=128, patience=1, validation_sample=500
    )
    sample = SampleConfig(
        train_requests=400, calibrate_requests=150, selection_requests=150, negatives=40
    )
    rankers = RankerConfig(trees=TreeConfig(rounds=20), dcn=DcnConfig(epochs=1, min_steps=30))
    with display.stage("Train") as progress:
        settings = TrainSettings(towers=towers, sample=sample, rankers=rankers)
        train(workspace, progress, settings)
    make_release(workspace)
    return workspace


@contextmanager
def live(workspace: Workspace, *job: str) -> Iterator[str]:
    """Run API and streaming job (with options ``job``) without streamed events; yield the URL."""
    root = workspace.root
    redis_client(
        workspace
    ).flushall()  # an earlier run's events, with its checkpoint and the rows that it appended
    shutil.rmtree(root / "stream", ignore_errors=True)
    for rows in root.glob("features/current/*/stream-*.parquet"):
        rows.unlink()
    stages.run_materialize(workspace)
    port = free_port()
    url, home = f"http://127.0.0.1:{port}", ["--home", str(root)]
    with (
        running(["serve", *home, "--port", str(port)], root / "serve.log"),
        running(["stream", *home, *job], root / "stream.log"),
    ):
        _wait(url, workspace)
        yield url


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@contextmanager
def running(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a ``funnel`` command beside, and end it."""
    call = [sys.executable, "-c", "from pipelines.commands.cli import main; main()", *command]
    with log.open("wb") as out:
        process = subprocess.Popen(call, stdout=out, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            process.terminate()
            process.wait(timeout=60)


def event(number: int, user: str, rng: random.Random) -> StoredEvent:
    """Return an event of now."""
    kind = rng.choices(["view", "like", "purchase"], [8, 1, 1])[0]
    item = f"b{int(ITEMS * rng.random() ** 2):04d}"
    return {
        "event_id": f"b{number}-{user}",
        "user_id": user,
        "item_id": item,
        "type": kind,
        "timestamp": time.time(),
    }


def drain(workspace: Workspace, every_s: float = 0.2) -> None:
    """Wait until the job has finished with every event of the log."""
    client = redis_client(workspace)
    while stream_status(client).pending:
        time.sleep(every_s)


def _wait(url: str, workspace: Workspace) -> None:
    """Wait until the API answers and the job has finished batches."""
    client = redis_client(workspace)
    rng, deadline = random.Random(6), time.time() + 300
    number = 0
    with httpx.Client(base_url=url, timeout=30) as api:
        while time.time() < deadline:
            try:
                api.post("/v1/events", json={"events": [event(number, f"warm-{number}", rng)]})
                number += 1
                if (stream_status(client).batch or (0, 0))[1] >= 30:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.2)
    raise RuntimeError(
        "the API or the job did not start; see serve.log and stream.log in the working folder"
    )
