"""A release is served whole or refused, and refused with a sentence that names what is wrong."""

from __future__ import annotations

import json
import pickletools
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from feature_repo.files import read_json, write_json
from feature_repo.hashing import file_hash
from feature_repo.workspace import PROJECT_ROOT
from serving.recommender.codec import Codec
from serving.recommender.filters import FilterRules, RequestRules
from serving.releases.manifest import EVALUATION, MANIFEST, BadRelease, verify_files, write_manifest
from serving.releases.release import load_release
from tests.support.tiny_release import ITEMS, NOW, PROVENANCE, SPEC, Tiny, tiny_codec, write_release

FILES = [
    "codec.json", "filters.json", "index.faiss", "item_tower.onnx", "item_vectors.npy",
    "items.arrow", "items.categories.npy", "items.codes.npy", "items.first.npy",
    "items.numeric.npy", "items.times.npy", "neighbours.npy",
    "ranker/calibration.json", "ranker/manifest.json", "ranker/model.json", "ranker/schema.json",
    "ranker/transform.json", "ranker/weights.npz", "raw_item_vectors.npy",
    "shares.json", "similarities.npy", "user_tower.onnx",
]  # fmt: skip


@pytest.fixture
def copy(tiny: Tiny, tmp_path: Path) -> Path:
    folder = tmp_path / "copy"
    shutil.copytree(tiny.folder, folder)
    return folder


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def test_manifest_has_the_hash_of_every_file(tiny: Tiny) -> None:
    manifest = read_json(tiny.folder / MANIFEST)
    assert sorted(manifest["files"]) == FILES
    assert all(file_hash(tiny.folder / name) == value for name, value in manifest["files"].items())
    assert (
        manifest["release"] == tiny.release.id
        and manifest["data_version"] == PROVENANCE.data_version
    )
    assert verify_files(tiny.folder) == tiny.release.manifest
    assert tiny.release.manifest.model_dump(exclude_unset=True) == manifest


@pytest.mark.parametrize("damage", [flip_a_bit, truncate, Path.unlink])
@pytest.mark.parametrize("name", FILES)
def test_damaged_file_is_named(copy: Path, name: str, damage: Callable[[Path], None]) -> None:
    damage(copy / name)
    with pytest.raises(BadRelease, match=name):
        load_release(copy)


def test_added_file_is_named_and_an_evaluation_is_no_addition(copy: Path, tiny: Tiny) -> None:
    (copy / EVALUATION).write_text("{}")
    (copy / f".{EVALUATION}.x1y2").write_text("{")
    assert load_release(copy).id == tiny.release.id
    (copy / "ranker" / "extra.txt").write_text("what is this?")
    with pytest.raises(BadRelease, match="ranker/extra.txt"):
        load_release(copy)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "no readable manifest.json"),
        ("{", "no readable manifest.json"),
        ("[]", "no readable manifest.json"),
        ("{}", "no readable manifest.json"),
        ('{"format": 3, "files": 3}', "no readable manifest.json"),
        ('{"format": 99, "files": {}}', "format 99, this version reads 3"),
        ('{"format": 3, "files": {}, "release": "made up"}', "own hash"),
    ],
)
def test_bad_manifest_is_refused(copy: Path, text: str | None, says: str) -> None:
    (copy / MANIFEST).unlink()
    if text is not None:
        (copy / MANIFEST).write_text(text)
    with pytest.raises(BadRelease, match=says):
        load_release(copy)


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRelease, match="no readable manifest.json"):
        load_release(tmp_path / "nowhere")


def test_whole_files_that_do_not_fit_together_are_refused(copy: Path) -> None:
    near = np.load(copy / "neighbours.npy")
    np.save(copy / "neighbours.npy", near[:-1])
    write_manifest(copy, PROVENANCE)
    with pytest.raises(BadRelease, match=r"disagree on the number of items: \[40, 41\]"):
        load_release(copy)


def test_ranker_of_another_data_set_is_refused(copy: Path) -> None:
    schema = read_json(copy / "ranker" / "schema.json")
    schema["numeric"][0] = "something_else"
    write_json(copy / "ranker" / "schema.json", schema)
    write_manifest(copy, PROVENANCE)
    with pytest.raises(BadRelease, match="trained on other columns"):
        load_release(copy)


def test_unreadable_part_is_refused_with_its_error(copy: Path) -> None:
    (copy / "user_tower.onnx").write_bytes(b"not a model")
    write_manifest(copy, PROVENANCE)
    with pytest.raises(BadRelease, match="cannot be loaded"):
        load_release(copy)


def test_equal_content_has_an_equal_id(tiny: Tiny, tmp_path: Path) -> None:
    """Everything made anew from the same seed: the same bytes.

    The versions of the manifest do not count.
    """
    write_release(tmp_path / "again")
    again = write_manifest(
        tmp_path / "again", PROVENANCE.model_copy(update={"created_at": "later"})
    )
    assert again == tiny.release.id
    write_json(tmp_path / "again" / "filters.json", FilterRules(blocklist=["i1"]).model_dump())
    assert write_manifest(tmp_path / "again", PROVENANCE) != tiny.release.id


def test_release_moved_elsewhere_gives_the_same_lists(tiny: Tiny, copy: Path) -> None:
    users = tiny.clickers()
    requests = [RequestRules(10)] * len(users)
    here, there = tiny.release, load_release(copy)
    for one, other in zip(
        here.recommender.recommend(users, requests, here.items),
        there.recommender.recommend(users, requests, there.items),
        strict=True,
    ):
        assert np.array_equal(one.items, other.items) and np.array_equal(one.scores, other.scores)


def test_loaded_tables_are_what_was_released(tiny: Tiny) -> None:
    """Whatever the order of JSON's keys.

    The towers' attribute codes hang on the order of the attributes.
    """
    loaded, made = tiny.release.items, tiny.items
    assert tiny.release.codec.spec == SPEC
    assert tiny.release.codec.to_dict() == tiny.codec.to_dict()
    assert tiny.release.codec.spec.event_types == ["view", "buy", "hide"]
    assert list(tiny.release.codec.spec.item_attributes) == list(SPEC.item_attributes)
    assert tiny.release.codec.numeric == tiny.codec.numeric
    assert np.array_equal(loaded.encoded.codes, made.encoded.codes)
    for one, other in (
        (loaded.encoded.numbers, made.encoded.numbers),
        (loaded.activity.counts, made.activity.counts),
        (loaded.activity.first_event_at, made.activity.first_event_at),
        (loaded.available_from, made.available_from),
        (loaded.available_until, made.available_until),
        (loaded.rows.numeric, made.rows.numeric),
        (loaded.rows.categorical, made.rows.categorical),
    ):
        assert np.array_equal(one, other, equal_nan=True)
    assert {name: list(values) for name, values in loaded.raw.items()} == {
        n: list(v) for n, v in made.raw.items()
    }
    assert len(loaded) == ITEMS + 1 and not loaded.available(NOW)[0]


def test_codec_survives_any_writer() -> None:
    written = tiny_codec().to_dict()
    restored = Codec.from_dict(json.loads(json.dumps(written, sort_keys=True)))
    assert restored.to_dict() == written
    assert restored.user_attributes.offsets == tiny_codec().user_attributes.offsets
    assert list(restored.categorical) == list(tiny_codec().categorical)


def test_nothing_in_a_release_is_a_pickle_or_names_this_machine(tiny: Tiny) -> None:
    for path in sorted(tiny.folder.rglob("*")):
        if not path.is_file():
            continue
        assert path.suffix in {".json", ".npy", ".npz", ".onnx", ".arrow", ".faiss"}, path.name
        assert not is_pickle(path.read_bytes()), path.name
        assert str(PROJECT_ROOT).encode() not in path.read_bytes(), path.name
    for path in tiny.folder.rglob("*.np[yz]"):
        np.load(path, allow_pickle=False)


def is_pickle(content: bytes) -> bool:
    if content[:1] != b"\x80":
        return False
    try:
        list(pickletools.genops(content))
    except ValueError:
        return False
    return True


def test_serving_can_do_without_torch() -> None:
    """A server needs neither torch nor the training code.

    Seconds of start and a gigabyte of disk.
    """
    modules = [
        "serving.recommender.recommender", "serving.releases.release", "retrieval.index",
        "retrieval.towers.context", "retrieval.covisitation", "ranking.models.scorer",
    ]  # fmt: skip
    code = (
        f"import sys, {', '.join(modules)}\n"
        "assert not {'torch', 'feast', 'pyspark'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT_ROOT, check=True)
