"""Commands that write the same refuse each other and say who is at work."""

import shutil
import signal
import threading
import time

import pytest

from feature_repo.files import locked, read_json, write_json
from feature_repo.stage_locks import StageRunning, Written, stage_lock
from feature_repo.workspace import MissingStage, Workspace
from pipelines import display
from pipelines.ingest.manifest import ingest_lock
from pipelines.operations.batch import run_batch
from pipelines.training.release import make_release
from pipelines.training.train import train, train_served
from pipelines.workflow import stages
from tests.support import forked
from tests.support.forked import Forked
from tests.support.tiny_release import write_trained
from tests.support.waiting import wait_until


def hold(root, written, user):
    """Hold a lock, as the command with these words would, until this process is killed."""
    import sys

    sys.argv = ["/usr/bin/funnel", "train", "--user", user]
    with stage_lock(Workspace(root), written):
        signal.pause()


@pytest.fixture
def held(tmp_path):
    """How another process holds a lock of ``tmp_path``; returns the process."""
    holders = []

    def hold_in_a_process(written):
        holder = Forked(hold, tmp_path, written, "u0017")
        holders.append(holder)
        lock = tmp_path / f".{written}.lock"
        wait_until(lambda: lock.exists() and lock.stat().st_size, 60)
        return holder

    yield hold_in_a_process
    for holder in holders:
        holder.kill()
        holder.wait()


def silent(*_):
    pass


@pytest.mark.parametrize(
    ("written", "command"),
    [
        (Written.MODELS, lambda w: train(w, silent)),
        (Written.MODELS, lambda w: train_served(w, 3_600, silent)),
        (Written.MODELS, make_release),
        (Written.FEATURES, stages.run_features),
    ],
    ids=["train", "train --from-impressions", "release", "features"],
)
def test_the_second_is_refused_and_told_who_is_first(tmp_path, held, written, command):
    workspace = Workspace(tmp_path)
    first = held(written)
    with pytest.raises(StageRunning) as refused:
        command(workspace)
    said = str(refused.value)
    assert f"process {first.pid} ('funnel train', since {time.strftime('%Y-')}" in said
    assert "wait until it has finished" in said and refused.value.exit_code == 2
    assert "u0017" not in said + (tmp_path / f".{written}.lock").read_text(), "it may be forgotten"

    first.kill()
    first.wait()
    with pytest.raises(MissingStage):  # the lock of a dead process is free
        command(workspace)


def test_materialize_too(tmp_path, held):
    (tmp_path / "features" / "current").mkdir(parents=True)
    first = held(Written.ONLINE)
    with pytest.raises(StageRunning, match=f"process {first.pid} "):
        stages.run_materialize(Workspace(tmp_path))


def test_who_waits_for_another_ingest_says_so(tmp_path, held, monkeypatch):
    said, entered = [], threading.Event()
    monkeypatch.setattr(display, "warning", said.append)
    first = held("ingest")

    def enter():
        with ingest_lock(Workspace(tmp_path)):
            entered.set()

    second = threading.Thread(target=enter)
    second.start()
    wait_until(lambda: bool(said), 60)
    assert f"process {first.pid} " in said[0] and not entered.is_set()
    first.kill()
    second.join(60)
    assert entered.is_set() and len(said) == 1


def test_two_batches_to_one_file(tmp_path):
    (tmp_path / "w").mkdir()
    with (
        locked(tmp_path / ".recs.parquet.lock"),
        pytest.raises(StageRunning, match=r"works on .*/recs.parquet: wait until"),
    ):
        run_batch(Workspace(tmp_path / "w"), tmp_path / "recs.parquet", 10)


def test_a_held_lock_names_nobody_who_only_held_it_before(tmp_path):
    workspace = Workspace(tmp_path)
    with stage_lock(workspace, Written.MODELS):
        pass
    assert (tmp_path / ".models.lock").read_text() == ""
    with (
        stage_lock(workspace, Written.MODELS, shared=True),
        pytest.raises(StageRunning, match="another process works on the models"),
        stage_lock(workspace, Written.MODELS),
    ):
        raise AssertionError("not reached")


def test_an_error_of_the_work_is_no_held_lock(tmp_path):
    with pytest.raises(KeyError), stage_lock(Workspace(tmp_path), Written.MODELS):
        raise KeyError


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory):
    return write_trained(tmp_path_factory.mktemp("trained") / "w")


@pytest.fixture
def trained_models(trained_once, tmp_path):
    """Trained models of the tiny release, in a working folder without a release."""
    return Workspace(shutil.copytree(trained_once.root, tmp_path / "w"))


def change_vectors(models):
    path = models / "retrieval" / "item_vectors.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def change_split(models):
    split = read_json(models / "split.json")
    write_json(models / "split.json", split | {"test": split["test"] + 1})


def change_version(models):
    path = models / "ranking" / "logistic" / "manifest.json"
    manifest = read_json(path)
    manifest["report"]["version"] = "another"
    write_json(path, manifest)


def change_report(models):
    path = models / "ranking" / "report.json"
    report = read_json(path)
    del report["trained_on"]
    write_json(path, report)


@pytest.mark.parametrize(
    "change",
    [change_vectors, change_split, change_version, change_report],
    ids=lambda f: f.__name__,
)
def test_parts_that_were_not_trained_on_each_other_are_not_released(trained_models, change):
    make_release(trained_models)
    before = (trained_models.releases / "current").resolve()
    change(trained_models.models)
    with pytest.raises(MissingStage, match="funnel train"):
        make_release(trained_models)
    assert (trained_models.releases / "current").resolve() == before
    assert not list(trained_models.releases.glob(".staging-*"))


@pytest.mark.faults
def test_two_trainings_at_once(tiny, tmp_path):
    """The second ends at once; the first ends as if it had been alone."""
    (tiny.models / "split.json").unlink()
    outs = [tmp_path / "one", tmp_path / "two"]
    first = Forked(forked.command, "train", "--home", tiny.root, "--kind", "logistic", out=outs[0])
    wait_until(lambda: (tiny.models / "split.json").exists(), 120)
    second = Forked(forked.command, "train", "--home", tiny.root, "--kind", "dcn", out=outs[1])
    assert second.wait(120) == 2 and f"process {first.pid} " in outs[1].read_text()
    release = Forked(forked.command, "release", "--home", tiny.root, out=outs[1])
    assert release.wait(120) == 2
    assert first.wait(400) == 0, outs[0].read_text()[-2_000:]
    assert list(read_json(tiny.models / "ranking" / "report.json")["kinds"]) == ["logistic"]
    assert forked.run(forked.command, "release", "--home", tiny.root, out=outs[0])[0] == 0


@pytest.mark.faults
def test_a_training_that_was_killed_between_towers_and_rankers_is_not_released(tiny, tmp_path):
    report = tiny.models / "retrieval" / "report.json"
    before = report.read_bytes()
    command = ("train", "--home", tiny.root, "--kind", "logistic", "--seed", 5)
    training = Forked(forked.command, *command, out=tmp_path / "out")
    wait_until(lambda: report.is_file() and report.read_bytes() != before, 400)
    training.kill()
    training.wait()
    with pytest.raises(MissingStage, match="were not trained on the towers"):
        make_release(tiny)
    code, said = forked.run(forked.command, *command, out=tmp_path / "out")
    assert code == 0, said[-2_000:]
    make_release(tiny)
