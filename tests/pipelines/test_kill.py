"""Any stage stopped by kill -9 and run again ends where an undisturbed run ends."""

import shutil
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from feature_repo import columns as c
from feature_repo.files import read_json
from feature_repo.hashing import file_hash
from feature_repo.stores.embedded_redis import release as stop_redis
from feature_repo.stores.feature_store import feature_store
from feature_repo.workspace import Workspace
from pipelines.features.stream_state import KEY
from pipelines.ingest.ingested import event_files
from pipelines.workflow import stages
from tests.support import forked
from tests.support.tiny_world import (
    kill_training,
    model_hashes,
    train_in_a_process,
)


@pytest.fixture
def run(tmp_path):
    """How a command runs to its end in a process of its own."""

    def run(*arguments):
        code, said = forked.run(forked.command, *arguments, out=tmp_path / "run.log", timeout=400)
        assert code == 0, said[-2_000:]

    return run


def kill_when(arguments, reached, patience=400.0):
    """Start a command, kill it -9 as soon as ``reached()`` holds; fail if it ended before that."""
    process = forked.Forked(forked.command, *arguments)
    deadline = time.monotonic() + patience
    try:
        while not reached():
            assert process.poll() is None, "the stage ended before it could be killed"
            assert time.monotonic() < deadline, "the stage never came so far"
            time.sleep(0.002)
    finally:
        process.kill()
        process.wait()


def tables(workspace):
    found = {}
    for folder in sorted(p for p in workspace.features.iterdir() if p.is_dir()):
        frame = pd.read_parquet(folder)
        order = [name for name in (c.USER, c.ITEM, KEY, c.EVENT_TIMESTAMP) if name in frame]
        frame = frame.sort_values(order, ignore_index=True)
        found[folder.name] = frame.map(lambda v: tuple(v) if isinstance(v, np.ndarray) else v)
    return found


def test_ingest(built, tmp_path, run):
    workspace = Workspace(tmp_path / "w")
    arguments = (
        "ingest",
        "--data-dir",
        built.workspace.root / "raw",
        "--home",
        workspace.root,
        "--shift-to-now",
    )
    kill_when(arguments, lambda: any(workspace.ingest.rglob("*.parquet")))
    assert not (workspace.ingest / "manifest.json").is_file()
    run(*arguments)
    assert read_json(workspace.ingest / "manifest.json") == read_json(
        built.workspace.ingest / "manifest.json"
    )
    for left, right in zip(event_files(workspace), event_files(built.workspace), strict=True):
        assert file_hash(Path(left)) == file_hash(Path(right))


@pytest.mark.faults  # two Spark jobs; what a stage leaves is tested by test_ingest here
def test_features(tiny):
    expected = tables(tiny)
    for link in (tiny.features, *(tiny.root / "features").glob("[0-9a-f]*")):
        if link.is_symlink():
            link.unlink()
        elif link.is_dir():
            shutil.rmtree(link)
    kill_when(
        ("features", "--home", tiny.root),
        lambda: any((tiny.root / "features").rglob("*.parquet")),
    )
    assert not tiny.features.exists()
    stages.run_features(tiny)
    actual = tables(tiny)
    assert actual.keys() == expected.keys()
    for name, frame in expected.items():
        pd.testing.assert_frame_equal(actual[name], frame, check_exact=True, obj=name)


@pytest.mark.faults
def test_materialize(built, copied, run):
    def size(workspace):
        log = workspace.redis / "appendonly.aof"
        return log.stat().st_size if log.exists() else 0

    whole = size(built.workspace)
    command = ("materialize", "--home", copied.root)
    kill_when(command, lambda: size(copied) > whole * 0.05)
    begun = size(copied)  # the file grows again from there
    kill_when(command, lambda: size(copied) > begun + whole * 0.5)
    run(*command)
    users = [{c.USER: f"u{n:04}"} for n in range(0, 400, 5)]
    features = ["user_activity:events_all", "user_history:history_item_ids", "user_seen:seen_view"]
    answers = [
        feature_store(w).get_online_features(features=features, entity_rows=users).to_dict()
        for w in (copied, built.workspace)
    ]
    assert answers[0] == answers[1]
    assert any(answers[0]["events_all"])
    stop_redis(copied.redis)


@pytest.mark.faults  # three trainings; a training resumes to equal bytes in tests/retrieval
def test_train(tiny):
    expected = model_hashes(tiny)
    shutil.rmtree(tiny.models)
    kill_training(tiny, "from scratch", "epoch 2")
    assert not (tiny.models / "ranking").exists()
    kill_training(tiny, "from scratch", "rankers: lightgbm trained")
    assert not (tiny.models / "ranking" / "dcn").exists()
    train_in_a_process(tiny, "from scratch")
    assert model_hashes(tiny) == expected


def test_release(built, copied, run):
    expected = built.release.name
    shutil.rmtree(copied.releases)
    command = ("release", "--home", copied.root)
    kill_when(command, lambda: any(copied.releases.glob(".staging-*/*")))
    assert not (copied.releases / "current").exists()
    run(*command)
    assert (copied.releases / "current").resolve().name == expected
    assert not list(copied.releases.glob(".staging-*"))
