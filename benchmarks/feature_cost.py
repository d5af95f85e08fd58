"""What declared features cost a request and an event: none, 10, 50 and 100 aggregates, a table.

One world is made and all aggregates are computed once. Each variant is a working folder of its own,
whose ranker reads what the variant declares, with a server and a Redis. All servers run at the same
time and are loaded in turns, so that what else the machine does falls on all of them.
"""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.feature_variants import TABLE, VARIANTS, features_file
from benchmarks.live import free_port, running
from benchmarks.load import Load, encode_requests, load
from benchmarks.serving import K, Stopwatch, active_users, ready
from feature_repo import columns as c
from feature_repo.aggregates.key_state import KeyState
from feature_repo.aggregates.reading import EventReader
from feature_repo.declarations.reading import declared_in
from feature_repo.stores.feature_store import apply, feature_store
from feature_repo.units import MICROS
from feature_repo.workspace import Workspace
from pipelines import display
from pipelines.features.stream_state import KEY, STATE, STATE_COLUMN, USER_KEY
from pipelines.ingest.ingest import ingest
from pipelines.ingest.ingested import read_events
from pipelines.synthetic.generate import generate
from pipelines.synthetic.world import WorldConfig
from pipelines.training.config import SampleConfig
from pipelines.training.release import make_release
from pipelines.training.release_pointer import current_release
from pipelines.training.train import TrainSettings, train
from pipelines.workflow import stages
from pipelines.workflow.data_sets import find_spec
from ranking.config import RankerConfig, TreeConfig
from retrieval.towers.config import TowerTrainingConfig
from serving.api.schemas import RecommendationRequest
from serving.engine import Engine
from serving.releases.release import load_release

WORLD = WorldConfig(users=150, items=800, days=40, seed=3, events_per_user=40.0)
SETTINGS = TrainSettings(
    towers=TowerTrainingConfig(epochs=2, uniform_negatives=64, patience=1, validation_sample=300),
    sample=SampleConfig(train_requests=400, calibrate_requests=100, selection_requests=100),
    rankers=RankerConfig(kinds=("lightgbm",), trees=TreeConfig(rounds=60)),
)
ACCEPTED = 20
"""Events of each user that are accepted and not streamed, for the second load."""

_STAGE_REQUESTS = 60


class Variant(NamedTuple):
    """A working folder that declares some features, and the port of its server."""

    name: str
    workspace: Workspace
    port: int


def run(root: Path, *, rounds: int, seconds: float) -> dict[str, Any]:
    """Measure all variants.

    Args:
        root: folder of the working folders; what is there is removed.
        rounds: turns of each load; a variant's figure is the median of its turns.
        seconds: duration of one turn.

    Returns:
        by variant: p50 and p99 of answers in milliseconds, for users whose events are all streamed
        and for users with accepted events that are not; p50 of the stages in the process; events a
        second that one process adds to users' states.

    """
    shutil.rmtree(root, ignore_errors=True)
    os.environ.setdefault("FUNNEL_DEADLINE_MS", "5000")  # a busy machine leaves no stage out
    base = _world(root / "base")
    variants = [_variant(base, root, name) for name in VARIANTS]
    users = active_users(base)
    with display.stage("Fold events"):
        folded = _in_turns(variants, rounds, lambda one: _events_per_s(one.workspace))
    with ExitStack() as stack:
        with display.stage("Start servers"):
            for one in variants:
                command = ["serve", "--home", str(one.workspace.root), "--port", str(one.port)]
                stack.enter_context(running(command, one.workspace.root / "serve.log"))
            for one in variants:
                ready(one.port)
        with display.stage("HTTP"):
            rested = _http(variants, users, rounds, seconds)
            for one in variants:
                _click(one.port, users)
            clicked = _http(variants, users, rounds, seconds)
    with display.stage("Stages"):
        timed = [_stages(one, users) for one in variants]
    figures = {
        one.name: {
            "ranker_columns": _columns(one.workspace),
            **rested[one.name],
            **{f"{name}_clicked": value for name, value in clicked[one.name].items()},
            "stages_p50_ms": of_stages,
            "folded_events_per_s": round(folded[one.name]),
        }
        for one, of_stages in zip(variants, timed, strict=True)
    }
    _show(figures)
    return {"rounds": rounds, "seconds": seconds, "accepted": ACCEPTED, "variants": figures}


def _world(root: Path) -> Workspace:
    """Return a working folder with the tables of every aggregate, and towers."""
    data = root / "raw"
    generate(data, WORLD)
    _give_values(data / "events.csv")
    _write_table(data)
    workspace = Workspace(root / "work")
    file = root / "features.py"
    _declare(file, list(VARIANTS))
    spec = find_spec("synthetic").model_copy(update={"features": str(file)})
    with display.stage("Ingest") as progress:
        ingest(spec, data, workspace, shift_to_now=True, progress=progress)
    stages.run_features(workspace)
    return workspace


def _give_values(events: Path) -> None:
    """Give every event a value, so that no aggregate is idle."""
    rng = random.Random(1)
    with events.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    with events.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(row | {"value": f"{rng.uniform(1, 100):.2f}"} for row in rows)


def _write_table(folder: Path) -> None:
    """Write a table of 100 numbers of each user, known since long ago."""
    rng = np.random.default_rng(2)
    with (folder / "users.csv").open(encoding="utf-8", newline="") as file:
        users = [row["user_id"] for row in csv.DictReader(file)]
    columns: dict[str, Any] = {
        "user_id": users,
        "known_from": pa.array([0] * len(users), pa.timestamp("us", tz="UTC")),
    }
    columns |= {name: rng.normal(size=len(users)) for name in TABLE}
    pq.write_table(pa.table(columns), folder.parent / "numbers.parquet")


def _declare(file: Path, variants: Sequence[str]) -> None:
    file.write_text(features_file(variants), encoding="utf-8")


def _variant(base: Workspace, root: Path, name: str) -> Variant:
    """Return a copy of the base whose ranker reads what a variant declares, trained."""
    folder = root / name.replace(" ", "-")
    ignored = shutil.ignore_patterns("redis", "spark", "*.sock", "*.lock", "*.pid")
    shutil.copytree(base.root, folder / "work", symlinks=True, ignore=ignored)
    workspace = Workspace(folder / "work")
    shutil.copy(base.root.parent / "numbers.parquet", folder)
    _declare(folder / "features.py", [name])
    spec = base.spec().model_copy(update={"features": str(folder / "features.py")})
    (workspace.ingest / "dataset.json").write_text(spec.model_dump_json(), encoding="utf-8")

    stages.run_materialize(workspace)
    apply(feature_store(workspace), workspace)
    with display.stage(f"Train {name}") as progress:
        train(workspace, progress, SETTINGS)
        make_release(workspace)
    return Variant(name, workspace, free_port())


def _in_turns(
    variants: Sequence[Variant], rounds: int, measure: Callable[[Variant], float]
) -> dict[str, float]:
    """Return the median of a measurement of each variant, taken in turns."""
    found: dict[str, list[float]] = {one.name: [] for one in variants}
    for _ in range(rounds):
        for one in variants:
            found[one.name].append(measure(one))
    return {name: statistics.median(values) for name, values in found.items()}


def _http(
    variants: Sequence[Variant], users: Sequence[str], rounds: int, seconds: float
) -> dict[str, dict[str, float]]:
    """Return p50 and p99 of each variant's answers on one connection, in turns."""
    bodies = [json.dumps({"user_id": user, "k": K}).encode() for user in users]
    requests = encode_requests("/v1/recommendations", bodies)
    loads: dict[str, list[Load]] = {one.name: [] for one in variants}
    for number in range(rounds + 1):  # the first is to warm up
        for one in variants:
            answers = load(one.port, requests, connections=1, seconds=seconds if number else 1.0)
            if not set(answers.statuses) <= {200, 503}:
                raise RuntimeError(f"{one.name}: some requests failed: {answers.statuses}")
            loads[one.name].append(answers)
    return {
        name: {
            f"p{q}_ms": round(statistics.median(part.percentile(q) for part in parts[1:]), 3)
            for q in (50, 99)
        }
        for name, parts in loads.items()
    }


def _click(port: int, users: Sequence[str]) -> None:
    """Send events of every user; no job takes them from the overlay."""
    now = time.time()
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as api:
        for user in users:
            events = [
                {"event_id": f"{user}-{n}", "user_id": user, "item_id": f"i{n + 1:04d}",
                 "type": "view", "timestamp": now - 30 * n, "value": 5.0}
                for n in range(ACCEPTED)
            ]  # fmt: skip
            answer = api.post("/v1/events", json={"events": events})
            if answer.json().get("accepted") != ACCEPTED:
                raise RuntimeError(f"events were not accepted: {answer.text[:300]}")


def _stages(one: Variant, users: Sequence[str]) -> dict[str, float]:
    """Return p50s of requests in this process: each stage, and processor time, milliseconds.

    Processor time counts what the machine does otherwise the least.
    """
    workspace = one.workspace
    engine = Engine(load_release(current_release(workspace)), workspace, log_impressions=False)
    stopwatch = Stopwatch()
    engine.metrics.stage = stopwatch  # type: ignore[method-assign,assignment]
    requests = [RecommendationRequest(user_id=user, k=K) for user in users[:_STAGE_REQUESTS]]
    try:
        for request in requests:
            engine.recommend(request)
        stopwatch.times.clear()
        processor = stopwatch.times["processor"] = []
        for request in requests:
            start = time.process_time()
            engine.recommend(request)
            processor.append((time.process_time() - start) * 1_000)
    finally:
        engine.close()
    return {name: stopwatch.percentiles(name)[0] for name in stopwatch.times}


def _columns(workspace: Workspace) -> int:
    return len(load_release(current_release(workspace)).codec.numeric)


def _events_per_s(workspace: Workspace) -> float:
    """Return how many events a second the stream's code adds, each to another user's state.

    That is reading the state, adding an event, writing it, and the row for the online store.
    """
    reader = EventReader.of(workspace.spec())
    views = [view for view in declared_in(workspace).streamed if view.key == c.USER]
    table = pq.read_table(workspace.features / STATE).to_pydict()
    pairs = zip(table[KEY], table[STATE_COLUMN], strict=True)
    stored = [(key[len(USER_KEY) :], text) for key, text in pairs if key.startswith(USER_KEY)]
    end = int(read_events(workspace)[c.TIMESTAMP].max().timestamp() * MICROS)

    start = time.perf_counter()
    for number, (user, text) in enumerate(stored):
        state = KeyState.load(text, views)
        state.position = f"{end // 1_000}-{number}"
        event_id, kind = f"e{number}", reader.types[0]
        state.add([reader.read(end, event_id, kind, user=user, item="i0001", value=5.0)])
        state.dump()
        state.row()
    return len(stored) / (time.perf_counter() - start)


def _show(figures: dict[str, Any]) -> None:
    names = ("ranker_columns", "p50_ms", "p99_ms", "p50_ms_clicked", "p99_ms_clicked")
    rows = [
        [name, *(str(of[column]) for column in names), str(of["folded_events_per_s"])]
        for name, of in figures.items()
    ]
    display.table("Declared features of users", ["", *names, "folded events/s"], rows)
    timed = list(next(iter(figures.values()))["stages_p50_ms"])
    by_stage = [[name, *(f"{of['stages_p50_ms'][one]:.3f}" for one in timed)]
                for name, of in figures.items()]  # fmt: skip
    display.table("Stages, p50 ms, accepted events not streamed", ["", *timed], by_stage)
