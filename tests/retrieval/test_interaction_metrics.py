"""Recall and NDCG over all items against cases worked by hand, and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.metrics import ndcg_score, recall_score

from retrieval.interactions.metrics import recall_and_ndcg

ITEMS = 6


def matrix(*rows: list[int]) -> sparse.csr_matrix:
    dense = np.zeros((len(rows), ITEMS), np.float32)
    for row, items in enumerate(rows):
        dense[row, items] = 1
    return sparse.csr_matrix(dense)


def measure(
    scores: list[list[float]],
    known: sparse.csr_matrix,
    wanted: sparse.csr_matrix,
    k: int,
    **more: int,
) -> tuple:
    return recall_and_ndcg(
        torch.tensor(scores, dtype=torch.float32), torch.eye(ITEMS), known, wanted, k=k, **more
    )


def test_hits_count_by_their_place() -> None:
    """Ranks 1 and 3 of items 0..5 in order; three wanted, two found in three places."""
    recall, ndcg = measure([[6, 5, 4, 3, 2, 1]], matrix([]), matrix([0, 2, 5]), 3)
    assert recall == pytest.approx(2 / 3)
    assert ndcg == pytest.approx((1 + 1 / 2) / (1 + 1 / math.log2(3) + 1 / 2))


def test_more_wanted_than_places() -> None:
    """Recall is of all that are wanted, the ideal list of NDCG only as long as the list."""
    recall, ndcg = measure([[6, 5, 4, 3, 2, 1]], matrix([]), matrix([0, 1, 4, 5]), 2)
    assert recall == pytest.approx(2 / 4)
    assert ndcg == pytest.approx(1)


def test_known_items_make_room() -> None:
    recall, ndcg = measure([[6, 5, 4, 3, 2, 1]], matrix([0, 1]), matrix([3]), 2)
    assert recall == 1
    assert ndcg == pytest.approx(1 / math.log2(3))


def test_a_known_item_is_never_a_hit() -> None:
    """Not even where the list is longer than what is left."""
    recall, ndcg = measure([[6, 5, 4, 3, 2, 1]], matrix([0, 1, 2, 3]), matrix([0, 5]), 6)
    assert recall == pytest.approx(1 / 2)
    assert ndcg == pytest.approx((1 / math.log2(3)) / (1 + 1 / math.log2(3)))


@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_users_who_want_nothing_are_left_out(chunk: int) -> None:
    scores = [[6, 5, 4, 3, 2, 1], [6, 5, 4, 3, 2, 1], [1, 2, 3, 4, 5, 6]]
    recall, ndcg = measure(scores, matrix([], [], [5]), matrix([0], [], [0, 4]), 1, chunk=chunk)
    assert recall == pytest.approx((1 + 1 / 2) / 2)
    assert ndcg == pytest.approx(1)


def test_only_the_asked_users() -> None:
    scores = [[6, 5, 4, 3, 2, 1], [1, 2, 3, 4, 5, 6]]
    users = np.array([1])
    recall, _ = recall_and_ndcg(
        torch.tensor(scores, dtype=torch.float32),
        torch.eye(ITEMS),
        matrix([], []),
        matrix([0], [0]),
        k=1,
        rows=users,
    )
    assert recall == 0


def test_agree_with_scikit_learn() -> None:
    random = np.random.default_rng(3)
    users, items, k = 50, 40, 20
    scores = random.normal(size=(users, items)).astype(np.float32)
    wanted = (random.random((users, items)) < 0.1).astype(np.float32)
    wanted[np.arange(users), random.integers(0, items, users)] = 1  # each wants something
    recall, ndcg = recall_and_ndcg(
        torch.from_numpy(scores),
        torch.eye(items),
        sparse.csr_matrix((users, items)),
        sparse.csr_matrix(wanted),
        k=k,
    )
    listed = np.argsort(np.argsort(-scores, axis=1), axis=1) < k
    assert recall == pytest.approx(recall_score(wanted > 0, listed, average="samples"))
    assert ndcg == pytest.approx(ndcg_score(wanted, scores, k=k), abs=1e-6)
