"""The exported user tower is the trained one, and tells nothing of where it was made."""

from __future__ import annotations

import getpass
import socket
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from feature_repo.workspace import PROJECT_ROOT
from retrieval.towers.context import GAP_BUCKETS, concatenate, gap_buckets
from retrieval.towers.evaluation import item_vectors
from retrieval.towers.examples import user_inputs
from retrieval.towers.export import export_item_tower, export_user_tower
from tests.support.checkerboard import NEW_ITEMS, Solved


@pytest.fixture(scope="module", params=["histories", "attributes"])
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Solved, Path]:
    solved: Solved = request.getfixturevalue(request.param)
    path = tmp_path_factory.mktemp("export") / "user_tower.onnx"
    export_user_tower(solved.towers, path)
    return solved, path


def test_onnx_equals_torch(exported: tuple[Solved, Path]) -> None:
    solved, path = exported
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    raw, _ = item_vectors(solved.towers)
    context = solved.world.examples(5).context
    for n in (1, 3, 64):
        part = context[:n]
        history = torch.from_numpy(part.history.astype(np.int64))
        with torch.no_grad():
            expected = solved.towers.users(
                *user_inputs(part, torch.from_numpy(raw), history).tensors()
            ).numpy()
        inputs = {**part.arrays(), "clicked": raw[part.history]}
        found = session.run(["vector"], inputs)[0]
        assert found.shape == expected.shape and found.dtype == np.float32
        assert np.abs(found - expected).max() < 1e-5


def test_the_item_tower_gives_new_items_the_trained_vectors(
    exported: tuple[Solved, Path], tmp_path: Path
) -> None:
    towers, path = exported[0].towers, tmp_path / "item_tower.onnx"
    export_item_tower(towers, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    codes = list(NEW_ITEMS)
    inputs = {
        "attributes": towers.items.item_attributes[codes],
        "numbers": towers.items.item_numbers[codes],
    }
    found = session.run(["vector"], {name: value.numpy() for name, value in inputs.items()})[0]
    assert found.dtype == np.float32 and np.abs(found - item_vectors(towers)[0][codes]).max() < 1e-5


def test_onnx_names_no_place(exported: tuple[Solved, Path]) -> None:
    content = exported[1].read_bytes()
    for word in (
        str(PROJECT_ROOT),
        sys.prefix,
        str(Path.home()),
        getpass.getuser() + "@",
        ".py",
        "site-packages",
    ):
        assert word.encode() not in content, word
    if len(socket.gethostname()) > 4:
        assert socket.gethostname().encode() not in content


def test_same_towers_give_the_same_file(exported: tuple[Solved, Path], tmp_path: Path) -> None:
    solved, path = exported
    export_user_tower(solved.towers, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == path.read_bytes()


def test_gap_buckets_are_powers_of_two() -> None:
    seconds = np.array(
        [-5.0, 0.0, 0.5, 1.0, 1.9, 2.0, 3.9, 4.0, 1024.0, 86_400.0, 1e30, np.inf], dtype=np.float32
    )
    buckets = gap_buckets(seconds)
    assert buckets.tolist() == [0, 0, 0, 0, 0, 1, 1, 2, 10, 16, GAP_BUCKETS - 1, GAP_BUCKETS - 1]
    assert buckets.dtype == np.int64


def test_moments_are_utc_hours_and_weekdays(histories: Solved) -> None:
    context = histories.world.context(np.array([1, 2]), np.zeros((2, 6), dtype=np.int32))
    at = replace(context, time=np.array([0.0, 1_704_067_200.0 + 13 * 3600]))  # a Thursday, a Monday
    arrays = at.arrays()
    assert arrays["hour"].tolist() == [0, 13] and arrays["weekday"].tolist() == [3, 0]
    both = concatenate([at[:1], at[1:]])
    assert all(np.array_equal(value, arrays[name]) for name, value in both.arrays().items())
