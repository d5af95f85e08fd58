"""Who took what, without times: the text layout of LightGCN and what is compared on it.

A folder holds ``train.txt``, ``test.txt`` and, perhaps, ``valid.txt``; each line is ``user item
item ...``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from scipy import sparse

from feature_repo.arrays import Int64Array
from feature_repo.dataset import SpecError

Split = Literal["random", "tail"]
"""How a test part was drawn from each user's items."""

_LARGEST_END = 0.3
"""The most of a line that is held out for validation."""


@dataclass(frozen=True)
class Interactions:
    """Three parts of the same users and items, each a 0/1 float32 CSR matrix ``[users, items]``.

    ``places``, such a matrix, has the place of each item of ``train.txt`` from the end of its line,
    1 for the last; None for a random split, in which the order within lines means nothing.
    """

    train: sparse.csr_matrix
    valid: sparse.csr_matrix
    test: sparse.csr_matrix
    places: sparse.csr_matrix | None

    @cached_property
    def known(self) -> sparse.csr_matrix:
        """All that may be learned from before the test: train and valid together."""
        return _binary(self.train + self.valid)

    @property
    def held(self) -> sparse.csr_matrix:
        """The interactions to validate on.

        In a random split they are ``valid``. In a tail split they are the ends of lines, as large a
        share as the test part has of all interactions.
        """
        if self.places is None:
            return self.valid
        share = min(self.test.nnz / (self.test.nnz + self.known.nnz), _LARGEST_END)
        count = np.diff(self.places.indptr)
        taken = np.where(count > 1, np.maximum(1, np.rint(share * count)), 0)
        ends = self.places.copy()
        ends.data = (ends.data <= np.repeat(taken, count)).astype(np.float32)
        ends.eliminate_zeros()
        return ends


def read_interactions(folder: Path, seed: int = 0, split: Split = "random") -> Interactions:
    """Read a folder; ids become codes.

    Without ``valid.txt`` a tenth of each user's train items take its place.

    Args:
        folder: with the files.
        seed: of what is held out at random.
        split: how the test part was drawn from each user's items: at random, or as the last ones of
            lines that are in order of time. Nothing in the files says which.

    Raises:
        SpecError: a file is missing or empty, an id is no whole number, or a user in train or valid
            has no item.

    """
    pairs = {name: _read(folder / f"{name}.txt", name != "test") for name in ("train", "test")}
    given = (folder / "valid.txt").is_file()
    pairs["valid"] = (
        _read(folder / "valid.txt", True)
        if given
        else (np.zeros(0, np.int64), np.zeros(0, np.int64))
    )
    order = ("train", "valid", "test")
    users, user = np.unique(np.concatenate([pairs[name][0] for name in order]), return_inverse=True)
    items, item = np.unique(np.concatenate([pairs[name][1] for name in order]), return_inverse=True)
    ends = np.cumsum([len(pairs[name][0]) for name in order])[:-1]
    parts = [
        _matrix(rows, columns, (len(users), len(items)))
        for rows, columns in zip(np.split(user, ends), np.split(item, ends), strict=True)
    ]
    train, valid, test = parts
    places = None
    if split == "tail":
        places = _places(np.split(user, ends)[0], np.split(item, ends)[0], train.shape)
    if not given:
        train, valid = hold_out(train, seed)
    if not valid.nnz:
        raise SpecError(
            f"{folder}: nothing to validate on: "
            "give a valid.txt, or users with at least two train items"
        )
    return Interactions(train, valid, test, places)


def hold_out(
    matrix: sparse.csr_matrix, seed: int, share: float = 0.1
) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """Split off ``share`` of each user's items, at least one where there are two, at random."""
    degree = np.diff(matrix.indptr)
    row = np.repeat(np.arange(matrix.shape[0]), degree)
    order = np.lexsort((np.random.default_rng(seed).random(matrix.nnz), row))
    rank = np.empty(matrix.nnz, dtype=np.int64)
    rank[order] = np.arange(matrix.nnz) - np.repeat(matrix.indptr[:-1], degree)
    taken = np.where(degree > 1, np.maximum(1, np.rint(share * degree)), 0).astype(np.int64)
    out = rank < taken[row]
    rest, held = (
        _matrix(row[chosen], matrix.indices[chosen], matrix.shape) for chosen in (~out, out)
    )
    return rest, held


def _places(user: Int64Array, item: Int64Array, shape: tuple[int, int]) -> sparse.csr_matrix:
    """Return each item's place from the end of its line.

    If an item occurs twice in a line, the newer place counts.
    """
    order = np.argsort(user, kind="stable")
    user, item = user[order], item[order]
    count = np.bincount(user, minlength=shape[0])
    place = np.cumsum(count)[user] - np.arange(len(user))
    newest = np.unique(np.stack([user, item])[:, ::-1], axis=1, return_index=True)[1]
    last = len(user) - 1 - newest
    return sparse.csr_matrix(
        (place[last].astype(np.float32), (user[last], item[last])), shape=shape
    )


def _read(path: Path, items_needed: bool) -> tuple[Int64Array, Int64Array]:
    if not path.is_file():
        raise SpecError(
            f"{path} is missing: "
            "the folder needs train.txt and test.txt with lines 'user item item ...'"
        )
    rows: list[list[int]] = []
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                row = [int(word) for word in line.split()]
            except ValueError:
                raise SpecError(
                    f"{path}, line {number}: '{line.strip()[:60]}' "
                    "is not whole numbers 'user item item ...'"
                ) from None
            if any(not 0 <= value < 2**63 for value in row):
                raise SpecError(
                    f"{path}, line {number}: an id is negative or too large; ids are 0 to 2^63 - 1"
                )
            if len(row) == 1 and items_needed:
                raise SpecError(
                    f"{path}, line {number}: user {row[0]} has no items; leave the line out"
                )
            if len(row) > 1:
                rows.append(row)
    if not rows:
        raise SpecError(f"{path} has no interactions; each line is 'user item item ...'")
    user = np.repeat([row[0] for row in rows], [len(row) - 1 for row in rows]).astype(np.int64)
    return user, np.fromiter((item for row in rows for item in row[1:]), np.int64, count=len(user))


def _matrix(rows: Int64Array, columns: Int64Array, shape: tuple[int, int]) -> sparse.csr_matrix:
    return _binary(
        sparse.csr_matrix((np.ones(len(rows), np.float32), (rows, columns)), shape=shape)
    )


def _binary(matrix: sparse.csr_matrix) -> sparse.csr_matrix:
    """Count a repeated pair once."""
    matrix.sum_duplicates()
    matrix.data[:] = 1.0
    return matrix
