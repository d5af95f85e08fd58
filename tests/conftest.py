"""One small world, taken through every real stage once; tests look at what each stage left."""

# ruff: noqa: E402 - Feast is imported after its type checks are switched off

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# A busy machine must not change what is served; tests of deadlines set their own.
os.environ.setdefault("FUNNEL_DEADLINE_MS", "10000")
os.environ.setdefault("FUNNEL_REDIS_TIMEOUT_MS", "1000")

import pytest

from feature_repo.stores.feast_checks import disable_feast_type_checks

disable_feast_type_checks()  # as the command line does; before Feast is imported

from feature_repo.dataset import load_spec
from feature_repo.stores.embedded_redis import release as stop_redis
from feature_repo.stores.feature_store import apply, feature_store
from feature_repo.workspace import Workspace
from pipelines.evaluation.evaluate import evaluate
from pipelines.ingest.ingest import ingest
from pipelines.synthetic.generate import generate
from pipelines.training.release import make_release
from pipelines.training.train import TrainSettings, train
from pipelines.workflow import stages
from tests.support.small_world import RANKERS, SAMPLE, TOWERS, WORLD, Built, silent


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    root = tmp_path_factory.mktemp("funnel")
    workspace = Workspace(root)
    generate(root / "raw", WORLD)
    ingest(load_spec(stages.SPECS / "synthetic.toml"), root / "raw", workspace, shift_to_now=True)
    stages.run_features(workspace)
    stages.run_materialize(workspace)
    train(workspace, silent, TrainSettings(towers=TOWERS, sample=SAMPLE, rankers=RANKERS))
    release = make_release(workspace)
    yield Built(workspace, release, evaluate(workspace, release, silent).to_dict())
    stop_redis(workspace.redis)


@contextmanager
def _copy(source: Workspace, target: Path) -> Iterator[Workspace]:
    shutil.copytree(
        source.root, target, symlinks=True, ignore=shutil.ignore_patterns("redis", "spark")
    )
    workspace = Workspace(target)
    apply(feature_store(workspace), workspace)  # the registry names the tables by their full paths
    yield workspace
    stop_redis(workspace.redis)


@pytest.fixture(scope="session")
def copy() -> Callable[[Workspace, Path], AbstractContextManager[Workspace]]:
    """How a workspace is copied without its Redis: a context, since the copy may start one of its own."""
    return _copy


@pytest.fixture
def copied(built: Built, tmp_path: Path) -> Iterator[Workspace]:
    """A copy of the built workspace without its Redis, for tests that change things."""
    with _copy(built.workspace, tmp_path / "w") as workspace:
        yield workspace
