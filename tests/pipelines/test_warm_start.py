"""A warm start: what it takes from the release, what it learns from, and when it is refused."""

import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from feature_repo import columns as c
from feature_repo.dataset import SpecError
from feature_repo.encoding import AttributeEncoder, Vocabulary
from feature_repo.files import read_json, write_json
from feature_repo.workspace import MissingStage
from pipelines.commands.cli import app
from pipelines.ingest.ingested import read_events
from pipelines.training.config import RetrievalConfig
from pipelines.training.release import make_release
from pipelines.training.release_pointer import current_release
from pipelines.training.split import Split, epoch_seconds
from pipelines.training.train import train
from pipelines.training.train_ranking import train_ranking
from pipelines.training.train_retrieval import tower_builder, tower_data, train_retrieval
from pipelines.training.warm_start import BaseRelease, NothingNew, table_rows
from ranking.models import load
from serving.recommender.candidates import CandidateQuota
from serving.releases.manifest import read_manifest, write_manifest
from tests.support.small_world import silent
from tests.support.tiny_world import (
    ALL_SETTINGS,
    RANKERS,
    SAMPLE,
    TOWERS,
    WARM_START,
    kill_training,
    model_hashes,
    tiny_world,
    train_in_a_process,
)

SHORT = replace(TOWERS, epochs=2)
QUOTA = CandidateQuota(similar=40, new=30)


def continue_training(workspace, announce=silent):
    return train(workspace, silent, ALL_SETTINGS["warm start"], announce=announce)


@pytest.fixture(scope="module")
def older(copy, tmp_path_factory):
    """The tiny world with a release that was trained when only the first 85% of events existed."""
    with copy(tiny_world(), tmp_path_factory.mktemp("older") / "w") as workspace:
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


def test_known_ids_keep_their_vectors_in_a_grown_vocabulary(older):
    base = BaseRelease.of(older)
    events = read_events(older)
    split = Split.by_time(events)
    data = tower_data(older, events, split, progress=silent, base=base)
    torch.manual_seed(3)
    towers = tower_builder(data, base.retrieval.shape)()
    drawn = {name: value.clone() for name, value in towers.state_dict().items()}
    base.initialise(towers, data.codec)
    old = load_file(base.folder / "towers.safetensors")
    new = towers.state_dict()
    assert len(data.codec.users) > len(base.codec.users)
    for user in data.codec.users.values:
        row = new["users.ids.weight"][data.codec.users.code(user)]
        before = base.codec.users.code(user)
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
    scales = {}
    before = AttributeEncoder(
        kinds, {"colour": Vocabulary(["red", "blue"]), "size": Vocabulary(["s"])}, scales
    )
    now = AttributeEncoder(
        kinds, {"colour": Vocabulary(["green", "red"]), "size": Vocabulary(["m", "s"])}, scales
    )
    grown = before.grown(now)
    assert grown.vocabularies["colour"].values == ["red", "blue", "green"]
    assert grown.vocabularies["size"].values == ["s", "m"]
    rows = table_rows(replace(old, item_attributes=before), replace(old, item_attributes=grown))
    assert rows["items.attribute_table.weight"].tolist() == [0, 1, 2, -1, 3, -1]


def test_it_learns_from_new_events_and_as_many_old_ones(older):
    base = BaseRelease.of(older)
    events = read_events(older)
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


def test_a_warm_start_continues_from_the_release_and_can_be_released(again):
    before = current_release(again)
    announced = []
    report = continue_training(again, announced.append)
    assert list(report.kinds) == ["lambdarank"]
    assert announced == [
        f"towers: continue from release {before.name}",
        "rankers: lambdarank continues from the release's",
    ]
    assert report.config == replace(RANKERS, kinds=("lambdarank",))
    retrieval = read_json(again.models / "retrieval" / "report.json")
    assert retrieval["warm_start"] == before.name
    assert retrieval["settings"] == vars(WARM_START.towers(SHORT))
    assert read_json(again.models / "retrieval" / "shares.json") == QUOTA.model_dump()
    from_scratch = read_json(before / "metrics.json")["retrieval"]
    assert retrieval["towers"]["curve"][0]["loss"] < from_scratch["towers"]["curve"][0]["loss"]
    folders = (before / "ranker", again.models / "ranking" / "lambdarank")
    trees = [load(folder).boosters[0].num_trees() for folder in folders]
    assert trees[0] < trees[1] <= trees[0] + WARM_START.rounds
    hashes = model_hashes(again)
    continue_training(again)
    assert model_hashes(again) == hashes
    assert make_release(again) != before
    with pytest.raises(NothingNew, match="has learned from all events up to the cut already"):
        continue_training(again)


@pytest.mark.faults  # three more trainings
def test_a_killed_warm_start_ends_with_the_same_bytes(again, tmp_path, copy):
    with copy(again, tmp_path / "killed") as killed:
        kill_training(killed, "warm start", "epoch 2")
        for workspace in (killed, again):
            train_in_a_process(workspace, "warm start")
        assert model_hashes(killed) == model_hashes(again)


def test_without_a_release_it_says_what_to_run(tiny):
    shutil.rmtree(tiny.releases)
    with pytest.raises(MissingStage, match="run 'funnel release' first"):
        continue_training(tiny)


def test_a_release_that_does_not_say_how_its_ranker_was_trained_is_refused(tiny):
    folder = current_release(tiny)
    metrics = read_json(folder / "metrics.json")
    del metrics["ranking"]["config"]
    write_json(folder / "metrics.json", metrics)
    write_manifest(folder, read_manifest(folder).provenance)
    with pytest.raises(
        MissingStage, match="is of an earlier version: run 'funnel train' without --warm-start"
    ):
        BaseRelease.of(tiny)


def test_a_release_of_another_data_set_is_refused(tiny):
    path = tiny.ingest / "dataset.json"
    write_json(path, {**read_json(path), "name": "another"})
    with pytest.raises(SpecError, match="is of another data set"):
        continue_training(tiny)


def test_a_release_of_the_same_events_has_nothing_to_learn(tiny):
    before = model_hashes(tiny)
    with pytest.raises(NothingNew, match="bring new ones with 'funnel ingest'"):
        continue_training(tiny)
    assert model_hashes(tiny) == before


@pytest.mark.parametrize("options", [["--tuned"], ["--no-logq"], ["--seed", "1"]])
def test_options_that_a_warm_start_takes_from_the_release_are_refused(options, tmp_path):
    done = CliRunner().invoke(app, ["train", "--warm-start", *options, "--home", str(tmp_path)])
    assert done.exit_code == 2 and "--warm-start keeps the release's settings" in done.output
