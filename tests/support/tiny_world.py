"""A tiny world for tests of bytes and of control flow, which do not look at the models' quality.

It is trained in processes of its own, so that what a killed training leaves can be compared with
it to the byte: a process that was told to use fewer threads rounds otherwise.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo.dataset import load_spec
from feature_repo.hashing import file_hash
from feature_repo.stores.feature_store import apply, feature_store
from feature_repo.workspace import Workspace
from pipelines.ingest.ingest import ingest
from pipelines.synthetic.generate import WorldConfig, generate
from pipelines.training.config import SampleConfig
from pipelines.training.release import make_release
from pipelines.training.train import TrainSettings, train
from pipelines.training.warm_start import WarmStartConfig
from pipelines.workflow import stages
from ranking.config import DcnConfig, RankerConfig, TreeConfig
from retrieval.towers.config import TowerTrainingConfig
from tests.support import forked
from tests.support.built_once import ROOT, built_once

FEATURES = ROOT / "examples" / "features" / "features.py"
WORLD = WorldConfig(users=60, items=80, days=40, seed=11, events_per_user=40.0, deals=0.0)
TOWERS = TowerTrainingConfig(
    epochs=3, batch=128, uniform_negatives=32, patience=3, validation_sample=200
)
SAMPLE = SampleConfig(
    train_requests=200, calibrate_requests=60, selection_requests=60, negatives=20
)
RANKERS = RankerConfig(
    trees=TreeConfig(rounds=5, learning_rate=0.1), dcn=DcnConfig(epochs=1, min_steps=10)
)
WARM_START = WarmStartConfig(epochs=2, rounds=10, steps=20)
ALL_SETTINGS = {
    "from scratch": TrainSettings(towers=TOWERS, sample=SAMPLE, rankers=RANKERS),
    "warm start": TrainSettings(sample=SAMPLE, warm_start=WARM_START),
}


def tiny_world() -> Workspace:
    """Return the tiny world with features, models and release, without Redis; change nothing."""
    return Workspace(built_once("tiny", _build))


def train_in_a_process(workspace: Workspace, settings: str) -> None:
    """Train a workspace to the end; ``settings`` is a key of ``ALL_SETTINGS``."""
    code, said = _train(workspace, settings)
    assert code == 0, said


def kill_training(workspace: Workspace, settings: str, reached: str) -> None:
    """Start a training and kill it with SIGKILL when its progress begins with ``reached``."""
    code, said = _train(workspace, settings, reached)
    assert code == -signal.SIGKILL, f"ended after {said}"


def _train(workspace: Workspace, settings: str, kill_at: str | None = None) -> tuple[int, str]:
    """Train in a process; return its exit code and the end of what it wrote."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "log"
        code, said = forked.run(_train_here, workspace, settings, kill_at, out=out)
    return code, said[-2_000:]


def _train_here(workspace: Workspace, settings: str, kill_at: str | None) -> None:
    """Train a workspace; at progress that begins with ``kill_at`` this process kills itself."""

    def progress(description: str, *_: int) -> None:
        sys.stdout.write(f"{description}\n")
        sys.stdout.flush()
        if kill_at and description.startswith(kill_at):
            os.kill(os.getpid(), signal.SIGKILL)

    train(workspace, progress, ALL_SETTINGS[settings])


def model_hashes(workspace: Workspace) -> dict[str, str]:
    """Return the hash of every file of the trained models, by its path."""
    paths = [
        path
        for part in ("retrieval", "ranking")
        for path in (workspace.models / part).rglob("*")
        if path.is_file()
    ]
    return {str(path.relative_to(workspace.models)): file_hash(path) for path in paths}


def _declare(folder: Path) -> None:
    """Write the world's ``features.py``, and the table of margins that it reads."""
    shutil.copy(FEATURES, folder / "features.py")
    pq.write_table(margins(), folder / "margins.parquet")


def margins() -> pa.Table:
    """Return margin and vector of most items: of 100 days ago, of last week, and of in two days."""
    day = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    rows = [
        (f"i{number:04d}", day + timedelta(days=days), number / 100 + days, vector(number, days))
        for number in range(1, 71)
        for days in (-100, -7, 2)  # items are trained as of the midnight after the last event
    ]
    items, times, values, vectors = (list(column) for column in zip(*rows, strict=True))
    stamps = pa.array(times, pa.timestamp("us", tz="UTC"))
    lists = pa.array(vectors, pa.list_(pa.float32()))
    return pa.table(
        {"item_id": items, "known_from": stamps, "margin": values, "title_vector": lists}
    )


def vector(number: int, days: int) -> list[float] | None:
    """Return the vector of an item's title; some have none, of another length, or of length 0."""
    return {5: None, 6: [1.0], 7: [0.0, 0.0, 0.0]}.get(
        number, [float(number % 7), float(-days), 2.0]
    )


def _build(root: Path) -> None:
    workspace = Workspace(root)
    generate(root / "raw", WORLD)
    declared = built_once("declared", _declare) / "features.py"
    spec = load_spec(FEATURES.with_name("dataset.toml"))
    spec = spec.model_copy(update={"name": "synthetic", "features": str(declared)})
    ingest(spec, root / "raw", workspace, shift_to_now=True)
    stages.run_features(workspace)
    apply(feature_store(workspace), workspace)
    train_in_a_process(workspace, "from scratch")
    make_release(workspace)
