"""The text layout of LightGCN: what is read, and what is said of what cannot be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from feature_repo.dataset import SpecError
from retrieval.interactions.dataset import hold_out, read_interactions


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name}.txt").write_text(text)
    return folder


def test_parts_and_codes(tmp_path: Path) -> None:
    """Ids far apart become codes in their order.

    Blank lines and a test user without items are passed over.
    """
    folder = write(
        tmp_path, train="7 100 5 5\n\n9000000000 5\n", valid="7 6\n", test="9000000000 100\n7\n"
    )
    data = read_interactions(folder)
    assert data.train.toarray().tolist() == [[1, 0, 1], [1, 0, 0]]
    assert data.valid.toarray().tolist() == [[0, 1, 0], [0, 0, 0]]
    assert data.test.toarray().tolist() == [[0, 0, 0], [0, 0, 1]]
    assert data.known.toarray().tolist() == [[1, 1, 1], [1, 0, 0]]


def test_without_a_validation_file_one_is_made(tmp_path: Path) -> None:
    lines = [
        f"{user} " + " ".join(str(item) for item in range(user, user + 20)) for user in range(30)
    ] + ["30 1"]
    folder = write(tmp_path, train="\n".join(lines), test="0 40\n")
    data, again = read_interactions(folder, seed=3), read_interactions(folder, seed=3)
    assert np.diff(data.valid.indptr).tolist() == [2] * 30 + [0]
    assert data.train.multiply(data.valid).nnz == 0
    assert data.known.nnz == 30 * 20 + 1
    assert (data.valid != again.valid).nnz == 0
    assert (data.valid != read_interactions(folder, seed=4).valid).nnz > 0


def days(users: int = 60, sort: bool = False) -> str:
    """Lines of whole days, each three items that are always met one after the other."""
    generator = np.random.default_rng(0)
    lines = []
    for user in range(users):
        items = [3 * day + place for day in generator.permutation(20)[:7] for place in range(3)]
        lines.append(
            f"{user} " + " ".join(str(item) for item in (sorted(items) if sort else items))
        )
    return "\n".join(lines)


def test_a_tail_split_knows_the_ends_of_lines(tmp_path: Path) -> None:
    folder = write(tmp_path, train=days(), valid="0 59\n", test="0 1\n")
    data = read_interactions(folder, split="tail")
    assert data.places is not None
    first = [int(word) for word in days().splitlines()[0].split()[1:]]
    assert [int(data.places[0, item]) for item in first] == list(range(21, 0, -1))


@pytest.mark.parametrize(("wanted", "ends"), [(1, 1), (5, 4), (60, 6)])
def test_as_much_is_held_out_as_the_test_has(tmp_path: Path, wanted: int, ends: int) -> None:
    test = "\n".join(
        f"{user} " + " ".join(str(item) for item in range(wanted)) for user in range(60)
    )
    folder = write(tmp_path, train=days(), valid="0 59\n", test=test)
    data = read_interactions(folder, split="tail")
    first = [int(word) for word in days().splitlines()[0].split()[1:]]
    assert sorted(data.held[0].indices.tolist()) == sorted(first[-ends:])
    assert np.diff(data.held.indptr).tolist() == [ends] * 60
    assert (data.held > data.known).nnz == 0


def test_of_an_item_met_twice_the_newer_place_counts(tmp_path: Path) -> None:
    lines = days().splitlines()
    again = lines[0].split()[1]
    train = "\n".join([f"{lines[0]} {again}", *lines[1:]])
    data = read_interactions(write(tmp_path, train=train, test="0 1\n"), split="tail")
    assert data.places is not None
    assert data.places[0, int(again)] == 1


def test_in_a_random_split_the_order_of_a_line_means_nothing(tmp_path: Path) -> None:
    """Neither what is learned nor what is validated on depends on it."""
    generator = np.random.default_rng(1)
    rows = [line.split() for line in days().splitlines()]
    mixed = "\n".join(" ".join([row[0], *generator.permutation(row[1:])]) for row in rows)
    parts = []
    for text in (days(), days(sort=True), mixed):
        data = read_interactions(write(tmp_path, train=text, test="0 1\n"))
        assert data.places is None
        parts.append(data)
    for other in parts[1:]:
        for name in ("train", "valid", "test", "held", "known"):
            assert (getattr(parts[0], name) != getattr(other, name)).nnz == 0


def test_hold_out_leaves_each_user_an_item(tmp_path: Path) -> None:
    data = read_interactions(write(tmp_path, train="0 1\n1 1 2\n2 1 2 3\n", test="0 2\n"))
    rest, held = hold_out(data.known, seed=0)
    assert np.diff(rest.indptr).tolist() == [1, 1, 2]
    assert np.diff(held.indptr).tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"train": "0 1 2\n"}, "test.txt is missing"),
        ({"test": "0 1\n"}, "train.txt is missing"),
        ({"train": "\n", "test": "0 1\n"}, "train.txt has no interactions"),
        ({"train": "0 1 2\n", "test": ""}, "test.txt has no interactions"),
        ({"train": "0 1 2\n1 a\n", "test": "0 1\n"}, "train.txt, line 2: '1 a'"),
        ({"train": "0 1.5\n", "test": "0 1\n"}, "train.txt, line 1"),
        ({"train": "0 -1\n", "test": "0 1\n"}, "line 1: an id is negative"),
        ({"train": "0 99999999999999999999\n", "test": "0 1\n"}, "too large"),
        ({"train": "0 1 2\n5\n", "test": "0 1\n"}, "train.txt, line 2: user 5 has no items"),
        (
            {"train": "0 1\n", "valid": "0\n", "test": "0 1\n"},
            "valid.txt, line 1: user 0 has no items",
        ),
        ({"train": "0 1\n1 1\n", "test": "0 1\n"}, "nothing to validate on"),
    ],
)
def test_bad_input_is_named(tmp_path: Path, files: dict[str, str], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        read_interactions(write(tmp_path, **files))
