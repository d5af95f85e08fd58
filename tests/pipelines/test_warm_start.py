"""A training that goes on from the release: what it takes over, what it learns from, and when it cannot."""

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from feature_repo import columns as c
from feature_repo.encoding import AttributeEncoder, Vocabulary
from feature_repo.files import read_json, write_json
from feature_repo.hashing import file_hash
from feature_repo.workspace import MissingStage
from pipelines.ingest.ingested import read_events
from pipelines.training.config import RetrievalConfig
from pipelines.training.release import make_release
from pipelines.training.release_pointer import current_release
from pipelines.training.split import Split, epoch_seconds
from pipelines.training.train import TrainSettings, train
from pipelines.training.train_ranking import train_ranking
from pipelines.training.train_retrieval import tower_builder, tower_data, train_retrieval
from pipelines.training.warm_start import BaseRelease, NothingNew, WarmStartConfig, table_rows
from ranking.models import load
from serving.recommender.candidates import CandidateQuota
from serving.releases.manifest import read_manifest, write_manifest
from tests.support.command_line import funnel
from tests.support.small_world import RANKERS, SAMPLE, TOWERS, silent

WARM = WarmStartConfig(epochs=2, rounds=10, steps=20)
SHORT = replace(TOWERS, epochs=2)
QUOTA = CandidateQuota(similar=40, new=30)

AGAIN = """
from pathlib import Path
import sys
from feature_repo.workspace import Workspace
from tests.pipelines.test_warm_start import go_on
go_on(Workspace(Path(sys.argv[1])), lambda what, done, total: print(what, flush=True))
"""


def go_on(workspace, progress=silent, say=silent):
    settings = TrainSettings(sample=SAMPLE, warm_start=WARM)
    return train(workspace, progress, settings, announce=say)


@pytest.fixture(scope="module")
def older(built, copy, tmp_path_factory):
    """The built workspace with a release that was trained when only the first 85% of events had happened."""
    with copy(built.workspace, tmp_path_factory.mktemp("older") / "w") as workspace:
        events = read_events(workspace)
        events = events.iloc[: int(0.85 * len(events))]
        split = Split.by_time(events)
        shutil.rmtree(workspace.releases)
        shutil.rmtree(workspace.models)
        workspace.models.mkdir()
        write_json(workspace.models / "split.json", split.to_dict())
        retrieval = RetrievalConfig(towers=SHORT, quota=QUOTA)
        train_retrieval(workspace, events, split, retrieval, log=silent, progress=silent)
        rankers = replace(RANKERS, kinds=("lambdarank",))
        train_ranking(workspace, events, split, rankers, sample=SAMPLE, log=silent, progress=silent)
        make_release(workspace)
        yield workspace


@pytest.fixture
def again(older, copy, tmp_path):
    with copy(older, tmp_path / "w") as workspace:
        yield workspace


def model_hashes(workspace):
    folder = workspace.models
    wanted = [
        p for part in ("retrieval", "ranking") for p in (folder / part).rglob("*") if p.is_file()
    ]
    return {str(p.relative_to(folder)): file_hash(p) for p in wanted}


def test_known_ids_keep_their_vectors_in_a_grown_vocabulary(older):
    base, events = BaseRelease.of(older), read_events(older)
    split = Split.by_time(events)
    data = tower_data(older, events, split, progress=silent, base=base)
    torch.manual_seed(3)
    towers = tower_builder(data, base.retrieval.shape)()
    drawn = {name: value.clone() for name, value in towers.state_dict().items()}
    base.initialise(towers, data.codec)
    old, new = load_file(base.folder / "towers.safetensors"), towers.state_dict()
    assert len(data.codec.users) > len(base.codec.users)
    for user in data.codec.users.values:
        row, before = (
            new["users.ids.weight"][data.codec.users.code(user)],
            base.codec.users.code(user),
        )
        fresh = drawn["users.ids.weight"][data.codec.users.code(user)]
        assert torch.equal(row, old["users.ids.weight"][before] if before else fresh)
    for item in data.codec.items.values:
        row = new["items.ids.weight"][data.codec.items.code(item)]
        assert torch.equal(row, old["items.ids.weight"][base.codec.items.code(item)])
    tables = table_rows(base.codec, data.codec)
    assert all(torch.equal(value, old[name]) for name, value in new.items() if name not in tables)


def test_attribute_rows_follow_their_values(older):
    old = BaseRelease.of(older).codec
    kinds = {"colour": "categorical", "size": "categorical"}
    moments = {}
    before = AttributeEncoder(
        kinds, {"colour": Vocabulary(["red", "blue"]), "size": Vocabulary(["s"])}, moments
    )
    now = AttributeEncoder(
        kinds, {"colour": Vocabulary(["green", "red"]), "size": Vocabulary(["m", "s"])}, moments
    )
    grown = before.grown(now)
    assert grown.vocabularies["colour"].values == ["red", "blue", "green"]
    assert grown.vocabularies["size"].values == ["s", "m"]
    rows = table_rows(replace(old, item_attributes=before), replace(old, item_attributes=grown))
    assert rows["items.attribute_table.weight"].tolist() == [0, 1, 2, -1, 3, -1]


def test_it_learns_from_new_events_and_as_many_old_ones(older):
    base, events = BaseRelease.of(older), read_events(older)
    split = Split.by_time(events)
    time = epoch_seconds(events[c.TIMESTAMP])
    chosen = base.examples(events[time < split.ranker], split, 1)
    new = epoch_seconds(chosen[c.TIMESTAMP]) >= base.learned_until
    expected = (time >= base.learned_until) & (time < split.ranker) & events[c.POSITIVE].to_numpy()
    assert new.sum() == expected.sum() == (~new).sum()
    assert chosen[c.POSITIVE].all() and not chosen[c.EVENT_ID].duplicated().any()
    with pytest.raises(NothingNew, match="funnel ingest"):
        base.examples(
            events[time < base.learned_until], replace(split, ranker=base.learned_until), 1
        )


def test_a_warm_start_goes_on_from_the_release_and_can_be_released(again):
    before, said = current_release(again), []
    report = go_on(again, say=said.append)
    assert list(report.kinds) == ["lambdarank"]
    assert said == [
        f"towers: continue from release {before.name}",
        "rankers: lambdarank continues from the release's",
    ]
    assert report.config == replace(RANKERS, kinds=("lambdarank",))
    retrieval = read_json(again.models / "retrieval" / "report.json")
    assert retrieval["warm_start"] == before.name
    assert retrieval["settings"] == vars(WARM.towers(SHORT))
    assert read_json(again.models / "retrieval" / "shares.json") == QUOTA.model_dump()
    anew = read_json(before / "metrics.json")["retrieval"]
    assert retrieval["towers"]["curve"][0]["loss"] < anew["towers"]["curve"][0]["loss"]
    rankers = before / "ranker", again.models / "ranking" / "lambdarank"
    trees = [load(folder).boosters[0].num_trees() for folder in rankers]
    assert trees[0] < trees[1] <= trees[0] + WARM.rounds
    hashes = model_hashes(again)
    go_on(again)
    assert model_hashes(again) == hashes
    assert make_release(again) != before
    with pytest.raises(NothingNew, match="has learned from all events up to the cut already"):
        go_on(again)


def test_a_killed_warm_start_ends_with_the_same_bytes(again, tmp_path, copy):
    with copy(again, tmp_path / "killed") as killed:
        command = [sys.executable, "-c", AGAIN, str(killed.root)]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        for line in process.stdout:
            if line.startswith("epoch 2"):
                break
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        for workspace in (
            killed,
            again,
        ):  # as it was begun: a process with other threads rounds otherwise
            subprocess.run(
                [sys.executable, "-c", AGAIN, str(workspace.root)], check=True, capture_output=True
            )
        assert model_hashes(killed) == model_hashes(again)


def test_without_a_release_it_says_what_to_run(copied):
    shutil.rmtree(copied.releases)
    done = funnel("train", "--warm-start", "--home", copied.root)
    assert done.returncode == 2 and "run 'funnel release' first" in done.stderr


def test_a_release_that_does_not_say_how_its_ranker_was_trained_is_refused(copied):
    folder = current_release(copied)
    metrics = read_json(folder / "metrics.json")
    del metrics["ranking"]["config"]
    write_json(folder / "metrics.json", metrics)
    write_manifest(folder, read_manifest(folder).provenance)
    with pytest.raises(
        MissingStage, match="is of an earlier version: run 'funnel train' without --warm-start"
    ):
        BaseRelease.of(copied)


def test_a_release_of_another_data_set_is_refused(copied):
    path = copied.ingest / "dataset.json"
    write_json(path, {**read_json(path), "name": "another"})
    done = funnel("train", "--warm-start", "--home", copied.root)
    assert done.returncode == 2 and "is of another data set" in done.stderr


def test_a_release_of_the_same_events_has_nothing_to_learn(copied):
    done = funnel("train", "--warm-start", "--home", copied.root)
    assert done.returncode == 1 and "bring new ones with 'funnel ingest'" in done.stderr
    assert model_hashes(copied)
    for options in (["--tuned"], ["--no-logq"], ["--seed", "1"]):
        assert (
            "leave --tuned"
            in funnel("train", "--warm-start", *options, "--home", copied.root).stderr
        )
