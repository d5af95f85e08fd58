"""One small world, taken through every real stage; tests look at what each stage left."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from feature_repo.stores.embedded_redis import release as stop_redis
from feature_repo.stores.feature_store import apply, feature_store
from feature_repo.workspace import Workspace
from pipelines.evaluation.evaluate import evaluate
from pipelines.ingest.ingest import ingest
from pipelines.synthetic.generate import WorldConfig, generate
from pipelines.training.config import SampleConfig
from pipelines.training.release import make_release
from pipelines.training.release_pointer import current_release
from pipelines.training.train import TrainSettings, train
from pipelines.workflow import stages
from pipelines.workflow.data_sets import find_spec
from ranking.config import DcnConfig, RankerConfig, TreeConfig
from retrieval.towers.config import TowerTrainingConfig
from tests.support.built_once import built_once

WORLD = WorldConfig(users=400, items=250, days=60, seed=11, events_per_user=50.0)
TOWERS = TowerTrainingConfig(
    epochs=4, batch=512, uniform_negatives=128, patience=2, validation_sample=1_000
)
SAMPLE = SampleConfig(
    train_requests=800, calibrate_requests=250, selection_requests=250, negatives=40
)
RANKERS = RankerConfig(
    trees=TreeConfig(rounds=40, learning_rate=0.1), dcn=DcnConfig(epochs=1, min_steps=60)
)


def silent(*_: object) -> None:
    """Report progress to nobody."""


@dataclass(frozen=True)
class Built:
    """A workspace and its release."""

    workspace: Workspace
    release: Path


@contextmanager
def small_world(target: Path) -> Iterator[Built]:
    """Put a copy of the small world into ``target``: what the stages left, and its Redis."""
    with copy_of(Workspace(built_once("small", _build)), target, with_redis=True) as workspace:
        yield Built(workspace, current_release(workspace))


def evaluation_of(built: Built) -> dict[str, Any]:
    """Return the whole evaluation of the small world's release, with tuned baselines."""

    def evaluated(folder: Path) -> None:
        found = evaluate(built.workspace, built.release, silent)
        (folder / "evaluation.json").write_text(json.dumps(found.to_dict()))

    return json.loads((built_once("evaluation", evaluated) / "evaluation.json").read_text())


@contextmanager
def copy_of(source: Workspace, target: Path, *, with_redis: bool = False) -> Iterator[Workspace]:
    """Copy a workspace: a context, since the copy may start a Redis of its own.

    ``with_redis`` copies its Redis too, which must not run.
    """
    left = ["spark", "*.sock", "*.lock", "*.pid"] + ["redis"] * (not with_redis)
    shutil.copytree(source.root, target, symlinks=True, ignore=shutil.ignore_patterns(*left))
    workspace = Workspace(target)
    apply(feature_store(workspace), workspace)  # the registry names the tables by their full paths
    yield workspace
    stop_redis(workspace.redis)


def _build(root: Path) -> None:
    """Take the world through every stage below ``root``; its Redis is stopped."""
    workspace = Workspace(root)
    generate(root / "raw", WORLD)
    ingest(find_spec("synthetic"), root / "raw", workspace, shift_to_now=True)
    stages.run_features(workspace)
    stages.run_materialize(workspace)
    train(workspace, silent, TrainSettings(towers=TOWERS, sample=SAMPLE, rankers=RANKERS))
    make_release(workspace)
    stop_redis(workspace.redis)
