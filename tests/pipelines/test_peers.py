"""SASRec of the other environment: its inputs, what it learns, and how its vectors rank."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from feature_repo import columns as c
from feature_repo.files import read_json, write_json
from pipelines.evaluation import peers
from pipelines.evaluation.baseline_tuning import Validation
from pipelines.evaluation.baselines import popularity_bonus
from pipelines.evaluation.held_out import HeldOut
from pipelines.evaluation.peers import MAX_HISTORY, Peer, PeerFailed, write_inputs
from pipelines.evaluation.replayed_requests import PastRequests
from pipelines.ingest.ingested import read_events
from pipelines.training.past_requests import Requests, requests_from
from pipelines.training.split import epoch_seconds
from serving.releases.release import load_release

needs_peers = pytest.mark.skipif(not peers.PYTHON.is_file(), reason="make peers")


def silent(*_):
    pass


@pytest.fixture(scope="module")
def given(built, tmp_path_factory):
    """The inputs of a peer on the small world: their folder, the log, the release and requests."""
    folder = tmp_path_factory.mktemp("inputs")
    log = read_events(built.workspace)
    release = load_release(built.release)
    held_out = HeldOut.of(log, release, None)
    test = log[log[c.POSITIVE] & (epoch_seconds(log[c.TIMESTAMP]) >= cuts(release)["test"])]
    requests = requests_from(test.iloc[::9], release.codec)
    held_out = replace(held_out, requests=requests)
    write_inputs(folder, held_out)
    return folder, log, release, held_out.interactions, requests


def cuts(release):
    return release.manifest.split


def test_what_is_learned_from_are_the_positive_events_before_the_cut_in_order(given):
    folder, log, release, _, _ = given
    for name in ("choose", "test"):
        before = log[(epoch_seconds(log[c.TIMESTAMP]) < cuts(release)[name]) & log[c.POSITIVE]]
        learned = pd.read_parquet(folder / f"learn_{name}.parquet")
        assert (
            learned["item"].tolist() == release.codec.items.encode(before[c.ITEM].tolist()).tolist()
        )
        numbers = dict(zip(before[c.USER], learned["user"], strict=True))
        assert learned["user"].tolist() == before[c.USER].map(numbers).tolist()
        assert len(set(numbers.values())) == before[c.USER].nunique()


def test_requests_know_the_newest_positive_events_strictly_before_them(given):
    folder, log, release, interactions, requests = given
    codec, time = release.codec, epoch_seconds(log[c.TIMESTAMP])
    for name, asked in (
        ("choose", Validation.of(release, log, interactions).requests),
        ("test", requests),
    ):
        written = pd.read_parquet(folder / f"requests_{name}.parquet")
        assert written["item"].tolist() == asked.item.tolist()
        for row in range(0, len(asked), 7):
            before = log[
                (time < asked.time[row]) & (log[c.USER] == asked.user[row]) & log[c.POSITIVE]
            ]
            assert (
                written["history"][row].tolist()
                == codec.items.encode(before[c.ITEM].tolist())[-MAX_HISTORY:].tolist()
            )


def test_validation_may_be_shown_what_the_baselines_may(given):
    folder, log, release, interactions, _ = given
    bits, items = np.load(folder / "allowed_choose.npy"), len(release.codec.items)
    expected = np.concatenate(
        [may for _, may, _ in Validation.of(release, log, interactions).batches()]
    )
    assert np.array_equal(np.unpackbits(bits, axis=1, count=items).astype(bool), expected)
    assert read_json(folder / "about.json")["items"] == items


def test_vectors_are_ranked_by_their_product():
    """Item 0 is none, item 4 came after the cut; item 3 has two users, item 2 one."""
    users = np.array(
        [[9, 9], [1, 0], [0, 0], [0, 1]], dtype=np.float32
    )  # the first is another batch's
    items = np.array([[0, 0], [1, 0], [2, 5], [3, -1], [0, 0]], dtype=np.float32)
    peer = Peer(users, items, np.array([False, True, True, True, False]), {})
    bonus = popularity_bonus(
        sparse.csr_matrix([[0, 0, 1, 1, 0], [0, 0, 0, 1, 0]], dtype=np.float32)
    )
    allowed = np.ones((3, 5), dtype=bool)
    allowed[:, 0] = False
    allowed[2, 2] = False
    asked = Requests(
        np.array(list("abc")), np.array([2, 1, 4], np.int32), np.array(["view"] * 3), np.zeros(3)
    )
    batch = PastRequests(np.array([1, 2, 3]), asked, {}, None, None, allowed, None)
    ranks, top = peer.model(bonus)(batch)
    assert top[:, :4].tolist() == [[3, 2, 1, 4], [3, 2, 1, 4], [1, 3, 4, 0]]
    assert ranks.tolist() == [1, 2, 2]


def test_without_the_environment_it_is_said_how_to_get_it(built, monkeypatch, tmp_path):
    monkeypatch.setattr(peers, "PYTHON", tmp_path / "python")
    found = peers.sasrec(built.workspace, None, 1.0, silent)
    assert not found.models and "make peers" in found.left_out["sasrec"]


@pytest.mark.parametrize("code", [0, 3])
def test_a_peer_that_ends_without_a_result_says_where_to_look(monkeypatch, tmp_path, code):
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\necho broken >&2\nexit {code}\n")
    program.chmod(0o755)
    monkeypatch.setattr(peers, "PYTHON", program)
    (tmp_path / "in").mkdir()
    for name in ("learn_test.parquet", "requests_test.parquet"):
        (tmp_path / "in" / name).touch()
    with pytest.raises(PeerFailed, match="log.txt") as failed:
        peers.run(tmp_path / "in", tmp_path / "kept", 1.0, silent)
    assert Path(str(failed.value).split()[-1]).read_text() == "broken\n"


ITEMS, STRANGE = 40, 41
"""Items 1 to 40 follow each other in one circle; nobody interacted with item 41."""
AFTER = dict(
    zip(circle := np.random.default_rng(3).permutation(ITEMS) + 1, np.roll(circle, -1), strict=True)
)


def walk(start, steps):
    path = [start]
    while len(path) < steps:
        path.append(AFTER[path[-1]])
    return path


@pytest.fixture
def circle_world(tmp_path):
    """The inputs of a world whose next item hangs on nothing but the last one."""
    folder, generator = tmp_path / "inputs", np.random.default_rng(0)
    folder.mkdir()
    for name, users in (("choose", 150), ("test", 200)):
        paths = [walk(start, 12) for start in generator.integers(1, ITEMS + 1, users)]
        learned = {"user": np.repeat(np.arange(users), 12), "item": np.concatenate(paths)}
        pd.DataFrame(learned).astype("int32").to_parquet(folder / f"learn_{name}.parquet")
        asked_for(folder, name, generator.integers(1, ITEMS + 1, 60), generator)
    allowed = np.ones((60, STRANGE + 1), dtype=bool)
    allowed[:, 0] = False
    np.save(folder / "allowed_choose.npy", np.packbits(allowed, axis=1))
    setting = {
        "n_factors": 32,
        "n_blocks": 1,
        "n_heads": 2,
        "dropout_rate": 0.1,
        "session_max_len": 12,
        "loss": "softmax",
        "lr": 5e-3,
    }
    write_json(folder / "about.json", {"items": STRANGE + 1, "grid": [setting], "max_epochs": 60})
    return folder


def asked_for(folder, name, starts, generator):
    paths = [
        walk(start, steps)
        for start, steps in zip(starts, generator.integers(3, 9, len(starts)), strict=True)
    ]
    histories = [np.array(path[:-1], np.int32) for path in paths]
    histories[-2:] = [np.array([], np.int32), np.array([STRANGE], np.int32)]
    rows = {"history": histories, "item": np.array([path[-1] for path in paths], np.int32)}
    pd.DataFrame(rows).to_parquet(folder / f"requests_{name}.parquet")


@needs_peers
def test_sasrec_learns_what_follows_what_and_is_not_fitted_twice(circle_world, tmp_path):
    said = []
    peer = peers.run(circle_world, tmp_path / "kept", 20.0, lambda what, *_: said.append(what))
    assert any("tuning" in what for what in said) and any("fitting" in what for what in said)
    assert np.flatnonzero(~peer.known).tolist() == [0, STRANGE]
    wanted = pd.read_parquet(circle_world / "requests_test.parquet")["item"].to_numpy()[:-2]
    scores = np.where(peer.known, peer.users @ peer.items.T, -np.inf)
    assert (scores[:-2].argmax(axis=1) == wanted).mean() > 0.9  # by chance: one in 40
    assert not peer.users[-2:].any()  # nothing that is known in their histories
    (tried,) = peer.report["validation"]
    assert tried["ndcg@10"] > 0.9 and peer.report["chosen"]["epochs"] == tried["epochs"]
    assert not peer.report["unfinished"]

    said.clear()
    again = peers.run(circle_world, tmp_path / "kept", 20.0, lambda what, *_: said.append(what))
    assert not said and np.array_equal(again.users, peer.users)
    asked_for(circle_world, "test", [1, 2, 3, 4, 5], np.random.default_rng(1))
    other = peers.run(circle_world, tmp_path / "kept", 20.0, lambda what, *_: said.append(what))
    assert len(other.users) == 5 and np.allclose(other.items, peer.items, atol=1e-4)
    assert said and not any("tuning" in what for what in said)
