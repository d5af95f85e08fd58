"""Co-visitation against a recount with plain loops."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest

from retrieval.covisitation import REACH, similar_items


def recount(users: np.ndarray, items: np.ndarray) -> dict[int, dict[int, float]]:
    """Return the similarity of every pair with one, worked out event by event."""
    weight: dict[tuple[int, int], float] = defaultdict(float)
    for i in range(len(items)):
        for j in range(i + 1, min(i + REACH + 1, len(items))):
            if users[i] == users[j] and items[i] != items[j] and items[i] and items[j]:
                weight[int(items[i]), int(items[j])] += 1.0 / (j - i)
                weight[int(items[j]), int(items[i])] += 0.5 / (j - i)
    totals: dict[int, float] = defaultdict(float)
    for (first, _), value in weight.items():
        totals[first] += value
    near: dict[int, dict[int, float]] = defaultdict(dict)
    for (first, second), value in weight.items():
        near[first][second] = value / (np.sqrt(totals[first] * totals[second]) + 5.0)
    return near


@pytest.mark.parametrize("seed", range(4))
def test_neighbours_are_the_recount(seed: int) -> None:
    generator = np.random.default_rng(seed)
    users = np.sort(generator.integers(0, 12, 150))
    items = generator.integers(0, 25, 150).astype(np.int32)
    codes, similarities = similar_items(users, items, 26, k=8)
    assert codes.shape == similarities.shape == (26, 8)
    assert codes.dtype == np.int32 and similarities.dtype == np.float32
    near = recount(users, items)
    for item in range(26):
        expected = sorted(near[item].items(), key=lambda pair: -pair[1])[:8]
        found = codes[item] > 0
        assert found.sum() == len(expected)
        assert similarities[item, found] == pytest.approx(
            [score for _, score in expected], rel=1e-5
        )
        assert [near[item][int(code)] for code in codes[item, found]] == pytest.approx(
            similarities[item, found], rel=1e-5
        )
        assert not similarities[item, ~found].any()


def test_what_came_after_is_nearer_than_what_came_before() -> None:
    users = np.repeat(np.arange(20), 3)
    items = np.tile(np.array([1, 2, 3], dtype=np.int32), 20)
    codes, similarities = similar_items(users, items, 5, k=3)
    assert codes[2].tolist() == [3, 1, 0]
    assert similarities[2, 0] > similarities[2, 1] > similarities[2, 2] == 0.0
    assert not codes[4].any() and not codes[0].any()


def test_users_do_not_mix_and_nothing_is_near_nothing() -> None:
    codes, _ = similar_items(np.array([0, 1]), np.array([1, 2], dtype=np.int32), 3)
    assert not codes.any()
    codes, _ = similar_items(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int32), 3)
    assert codes.shape == (3, 100) and not codes.any()
