"""A release is refused for whatever is wrong with it.

With one sentence, and nothing else ever happens.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread

import faiss
import numpy as np
import pytest

from feature_repo.dataset import DatasetSpec
from feature_repo.declarations.feast_objects import build
from feature_repo.files import write_json
from feature_repo.stores.feature_store import feature_store
from feature_repo.workspace import Workspace
from ranking.calibration import HeadCalibration
from retrieval.index import build_index, save_index
from serving.releases import verify
from serving.releases.manifest import BadRelease
from serving.releases.release import Release, load_release
from serving.releases.smoke import made_up_users
from serving.releases.verify import check_release, features_read, registered_features
from tests.support.damaged_release import DAMAGE, change_array, change_json, put, remade, vectors_of
from tests.support.tiny_release import SPEC, Tiny

NOW = 1_800_000_000.0


@pytest.fixture
def copy(tiny: Tiny, tmp_path: Path) -> Path:
    return shutil.copytree(tiny.folder, tmp_path / "copy")


@pytest.fixture
def check(tiny: Tiny) -> Callable[[Path], Release]:
    """Check a release against a registry with all that the tiny one reads."""
    return lambda folder: check_release(folder, lambda: features_read(tiny.codec))


def test_a_good_release_is_loaded(tiny: Tiny, check: Callable[[Path], Release]) -> None:
    release = check(tiny.folder)
    assert release.id == tiny.release.id
    assert release.folder == tiny.folder.resolve()


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_refused(name: str, copy: Path, check: Callable[[Path], Release]) -> None:
    DAMAGE[name](copy)
    with pytest.raises(BadRelease) as refused:
        check(copy)
    said = str(refused.value)
    assert said.startswith(f"{copy}: ") and len(said) < len(str(copy)) + 450
    assert "\n" not in said


@pytest.mark.parametrize(
    "name", [name for name in DAMAGE if "hashed again" in name or "pickle" in name]
)
def test_what_native_code_would_choke_on_is_refused_by_loading(name: str, copy: Path) -> None:
    DAMAGE[name](copy)
    with pytest.raises(BadRelease, match=f"^{re.escape(str(copy))}: "):
        load_release(copy)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("half-copied", "is missing"),
        ("a link to itself", "codec.json is missing"),
        ("a pipe in the place of the manifest", "no readable manifest.json"),
        ("a pickle for an array", "neighbours.npy: ValueError: This file contains pickled"),
        ("NaN in the vectors", "item_vectors.npy contains NaN or infinity"),
        ("vectors that are not of unit length", "40 of its item vectors are not of unit length"),
        ("index of other items", "its index holds other vectors than item_vectors.npy"),
        ("codec with the items in another order", "items.arrow has other items than codec.json"),
        ("neighbour that does not exist", "neighbours.npy: a code is outside of 0 to 40"),
        ("user tower with other inputs", "does not work: ValueError: Required inputs"),
        ("ranker that gives NaN", "its ranker fails, or its scores contain NaN"),
        ("calibration that falls", "the calibration of 'view' is not monotonically increasing"),
        ("unknown field in the filters", "max_per_author"),
    ],
)
def test_the_sentence_says_what_is_wrong(
    name: str, says: str, copy: Path, check: Callable[[Path], Release]
) -> None:
    DAMAGE[name](copy)
    with pytest.raises(BadRelease, match=says):
        check(copy)


def test_a_release_that_changes_while_it_is_loaded_is_refused(copy: Path) -> None:
    done = Event()

    def touch() -> None:
        while not done.wait(0.0005):
            (copy / "shares.json").touch()

    toucher = Thread(target=touch)
    toucher.start()
    try:
        with pytest.raises(BadRelease, match="changed while it was being loaded"):
            load_release(copy)
    finally:
        done.set()
        toucher.join()


def test_quotas_and_rules_that_leave_nothing_are_no_damage(
    copy: Path, check: Callable[[Path], Release]
) -> None:
    items = load_release(copy).codec.items.values
    everything = {
        "exclude_seen": "all",
        "blocklist": items,
        "max_per_category": 1,
        "diversity": 0.5,
    }
    remade(lambda folder: write_json(folder / "filters.json", everything))(copy)
    assert check(copy).recommender.rules.max_per_category == 1


def test_an_erased_user_leaves_a_gap_that_is_no_damage(
    copy: Path, check: Callable[[Path], Release]
) -> None:
    remade(change_json("codec.json", lambda of: of.__setitem__("users", ["", "u1", "", ""])))(copy)
    assert len(check(copy).codec.users) == 5


class TestFeatures:
    """Against Feast's own registry."""

    @pytest.fixture
    def workspace(self, tmp_path: Path) -> Workspace:
        return Workspace(tmp_path / "w")

    def register(self, workspace: Workspace, spec: DatasetSpec) -> None:
        feature_store(workspace).apply(build(spec, workspace.root / "features"))

    def test_what_is_registered_suffices(self, workspace: Workspace, tiny: Tiny) -> None:
        self.register(workspace, SPEC)
        assert check_release(tiny.folder, registered_features(workspace)).id == tiny.release.id

    def test_missing_features_are_named(self, workspace: Workspace, tiny: Tiny) -> None:
        raw = SPEC.model_dump(mode="json")
        del raw["users"]["attributes"]["plan"], raw["events"]["types"]["hide"]
        self.register(workspace, DatasetSpec.model_validate(raw))
        with pytest.raises(
            BadRelease, match=r"user hide_count_1d, .* and \d+ more\): run 'funnel materialize'"
        ):
            check_release(tiny.folder, registered_features(workspace))

    def test_without_a_registry_everything_is_missing_and_none_is_made(
        self, workspace: Workspace, tiny: Tiny
    ) -> None:
        with pytest.raises(BadRelease, match="run 'funnel materialize'"):
            check_release(tiny.folder, registered_features(workspace))
        assert not workspace.feast_registry.exists()

    def test_a_broken_registry_is_said(self, workspace: Workspace, tiny: Tiny) -> None:
        self.register(workspace, SPEC)
        workspace.feast_registry.write_bytes(b"\x00nonsense")
        with pytest.raises(
            BadRelease, match="registry cannot be read .*: run 'funnel materialize'"
        ):
            check_release(tiny.folder, registered_features(workspace))


def test_made_up_users_fit_the_reader(tiny: Tiny) -> None:
    columns = made_up_users(tiny.codec, NOW)
    users = tiny.release.reader.read(columns, np.full(len(columns["user_id"]), NOW))
    assert set(features_read(tiny.codec)["user"]) <= set(columns)
    assert users.context.user.max() == len(tiny.codec.users) - 1
    assert users.context.history.max() == len(tiny.codec.items) - 1
    assert (users.context.attributes > 0).any() and (users.context.user == 0).any()
    assert (users.context.history > 0).sum(axis=1).tolist() == [0, 1, 40, 1]


@pytest.mark.parametrize("known", [False, True])
def test_only_an_item_of_which_nothing_is_known_may_have_no_vector(
    known: bool, copy: Path, check: Callable[[Path], Release]
) -> None:
    """New items without attributes are such, as the articles of a log that has nothing else."""
    for name in ("item_vectors.npy", "raw_item_vectors.npy"):
        change_array(name, put(5, 0.0))(copy)
    if not known:
        change_array("items.codes.npy", put(5, 0))(copy)
        change_array("items.first.npy", put(5, 0))(copy)
        change_array("items.numeric.npy", put(5, np.nan))(copy)
    index, _ = build_index(vectors_of(copy), vectors_of(copy), kind="Flat", at=10)
    save_index(index, copy / "index.faiss")
    remade(lambda _: None)(copy)
    if known:
        with pytest.raises(BadRelease, match="1 of its item vectors are not of unit length"):
            check(copy)
    else:
        check(copy)


@pytest.mark.parametrize(("probes", "good"), [(8, True), (1, False)])
def test_recall_of_inverted_lists(
    probes: int, good: bool, copy: Path, check: Callable[[Path], Release]
) -> None:
    vectors = vectors_of(copy)
    index, _ = build_index(vectors, vectors, kind="IVF8,Flat", at=10)
    faiss.extract_index_ivf(index).nprobe = probes
    save_index(index, copy / "index.faiss")
    remade(lambda _: None)(copy)
    if good:
        check(copy)
    else:
        with pytest.raises(
            BadRelease, match=r"its index finds .*% of the 10 nearest items; the minimum is 95%"
        ):
            check(copy)


def test_which_of_equally_near_items_is_found_does_not_matter() -> None:
    exact = np.array([[1.0, 0.5, 0.5, 0.5, 0.1]])
    found, cosines = np.array([[0, 3]]), np.array([[1.0, 0.5]])
    assert verify._against_exact(exact, cosines, found) == (1.0, 0.0)
    assert verify._against_exact(exact, np.array([[1.0, 0.6]]), np.array([[0, 4]])) == (0.5, 0.5)
    assert verify._against_exact(exact, cosines, np.array([[0, -1]]))[0] == 0.5


@pytest.mark.parametrize(
    ("head", "sound"),
    [
        (HeadCalibration(), True),
        (HeadCalibration("platt", 0.5, -3.0), True),
        (HeadCalibration("platt", 0.0, 0.0), False),
        (HeadCalibration("platt", 1.0, float("inf")), False),
        (HeadCalibration("isotonic", x=(0.1, 0.1, 0.9), y=(0.0, 0.5, 0.5)), True),
        (HeadCalibration("isotonic", x=(0.9, 0.1), y=(0.0, 0.5)), False),
        (HeadCalibration("isotonic", x=(0.1, 0.9), y=(0.0, 1.5)), False),
        (HeadCalibration("isotonic", x=(0.1,), y=()), False),
        (HeadCalibration("isotonic"), False),
    ],
)
def test_calibration_must_rise(head: HeadCalibration, sound: bool) -> None:
    assert verify._is_sound(head) == sound
