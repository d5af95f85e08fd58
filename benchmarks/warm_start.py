"""Warm start against training from scratch, after the newest 15% of a log have come in."""

from __future__ import annotations

import resource
import shutil
import time
from pathlib import Path
from typing import Any

from feature_repo.stores.feature_store import apply, feature_store
from feature_repo.workspace import Workspace
from pipelines import display
from pipelines.evaluation.evaluate import evaluate
from pipelines.ingest.ingest import ingest
from pipelines.synthetic.generate import generate
from pipelines.synthetic.world import WorldConfig
from pipelines.training.release import make_release
from pipelines.training.release_pointer import current_release, promote
from pipelines.training.train import TrainSettings, train
from pipelines.training.warm_start import WarmStartConfig
from pipelines.workflow import stages
from pipelines.workflow.data_sets import find_spec

EARLIER = 0.85


def run(root: Path, users: int, items: int, limit: int) -> dict[str, Any]:
    """Train on the first 85% of a world's events; then, on all of them, warm and from scratch.

    Args:
        root: folder of the world; trainings of an earlier run are removed.
        users: number of users.
        items: number of items.
        limit: number of test events that are replayed, the same for both.

    Returns:
        seconds on the clock and of processors, NDCG@10 and recall of the candidates, of each way,
        and the paired difference of NDCG@10 with its interval and p.

    """
    workspace = Workspace(root / "work")
    data = root / "raw"
    shutil.rmtree(workspace.root, ignore_errors=True)
    config = WorldConfig(users=users, items=items, days=90, seed=5, events_per_user=60.0)
    earlier, later = _halves(data, config)

    _ingest(workspace, data, "events-1.csv", earlier)
    result: dict[str, Any] = {
        "users": users,
        "items": items,
        "events": limit,
        "first": _measured(workspace, None),
    }
    before = None
    base = current_release(workspace).name
    _ingest(workspace, data, "events-2.csv", later)
    for name, warm in (("warm_start", WarmStartConfig()), ("anew", None)):
        promote(workspace, base)
        seconds = _measured(workspace, warm)
        folder = current_release(workspace)
        with display.stage(f"Evaluate {name}") as progress:
            figures = evaluate(workspace, folder, progress, limit, baselines=False, against=before)
        before = folder
        funnel = figures.models["funnel"]
        result[name] = {
            **seconds,
            "ndcg@10": funnel["ndcg@10"],
            "candidates_recall@100": figures.candidates["recall@100"],
        }
    assert figures.against is not None, "the second evaluation compares with the first release"
    result["anew_minus_warm_start"] = figures.against.metrics["ndcg@10"].model_dump()
    rows = [[name, *result[name].values()] for name in ("warm_start", "anew")]
    display.table("Training when 15% of the events are new", ["", *result["anew"]], rows)
    return result


def _halves(data: Path, config: WorldConfig) -> tuple[str, str]:
    """Write the world without events, and return these as two CSVs: the first 85%, the rest."""
    for old in data.glob("events*.csv"):
        old.unlink()
    generate(data, config)
    with (data / "events.csv").open(encoding="utf-8") as file:
        header, *rows = file
    (data / "events.csv").unlink()
    column = header.split(",").index("timestamp")
    rows.sort(key=lambda row: row.split(",")[column])
    cut = int(EARLIER * len(rows))
    return header + "".join(rows[:cut]), header + "".join(rows[cut:])


def _ingest(workspace: Workspace, data: Path, name: str, events: str) -> None:
    (data / name).write_text(events, encoding="utf-8")
    spec = find_spec("synthetic")
    spec = spec.model_copy(
        update={"events": spec.events.model_copy(update={"path": "events-*.csv"})}
    )
    ingest(spec, data, workspace)
    stages.run_features(workspace)
    apply(feature_store(workspace), workspace)


def _measured(workspace: Workspace, warm_start: WarmStartConfig | None) -> dict[str, float]:
    """Train and release; return wall-clock and processor seconds."""
    clock = time.perf_counter()
    used = _processor_s()
    with display.stage("Train" if warm_start is None else "Train from the release") as progress:
        settings = TrainSettings(warm_start=warm_start)
        train(workspace, progress, settings, announce=display.console.print)
        make_release(workspace)
    return {"seconds": time.perf_counter() - clock, "processor_seconds": _processor_s() - used}


def _processor_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
