"""Features of what other people's labels say.

Right on hand-worked pairs, and blind to the label to be predicted.
"""

from __future__ import annotations

import numpy as np
import pytest

from ranking.collaborative import (
    LabelledPairs,
    SideInformation,
    collaborative_features,
    out_of_fold,
)
from ranking.metrics import auc


def pairs(rows: list[tuple[int, int, int]]) -> LabelledPairs:
    user, item, label = (np.array(column) for column in zip(*rows, strict=True))
    return LabelledPairs(user.astype(np.int64), item.astype(np.int64), label.astype(np.float32))


def taste_world(seed: int = 0, noise: bool = False) -> tuple[LabelledPairs, SideInformation]:
    """Users of two groups, items of two tags; a group likes its own tag nine times of ten."""
    generator = np.random.default_rng(seed)
    users, items, n = 120, 60, 3_600
    chosen = generator.choice(users * items, n, replace=False)
    user, item = chosen // items, chosen % items
    likely = np.where(user % 2 == item % 2, 0.9, 0.1)
    label = (generator.random(n) < (0.5 if noise else likely)).astype(np.float32)
    tags = np.eye(2, dtype=np.float32)[np.arange(items) % 2]
    sides = SideInformation(
        users, items, {"side": np.arange(users) % 2}, {"half": np.arange(items) // 30}, tags
    )
    return LabelledPairs(user.astype(np.int64), item.astype(np.int64), label), sides


def test_counts_and_the_first_bias_by_hand() -> None:
    """One user, items met once: labels 1, 1, 0 have the mean 2/3.

    A bias is shrunk by five pairs of zero.
    """
    known = pairs([(0, 0, 1), (0, 1, 1), (0, 2, 0)])
    features = collaborative_features(known, pairs([(0, 2, 0), (1, 3, 0)]), SideInformation(2, 4))
    assert features["user_labels"].tolist() == [3, 0]
    assert features["item_labels"].tolist() == [1, 0]
    assert features["item_bias"][0] < 0
    assert features["item_bias"][0] == pytest.approx(-2 / 3 / 6, abs=0.01)
    assert {name: float(values[1]) for name, values in features.items()} == dict.fromkeys(
        features, 0.0
    )


def test_the_label_that_is_wanted_is_not_looked_at() -> None:
    known, sides = taste_world()
    wanted = known[np.arange(50)]
    other = LabelledPairs(wanted.user, wanted.item, 1 - wanted.label)
    rest = known[np.arange(50, len(known))]
    one, two = (collaborative_features(rest, part, sides) for part in (wanted, other))
    assert all(np.array_equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    "name",
    [
        "factors_10",
        "neighbours",
        "near_neighbours",
        "near_neighbours_sum",
        "item_in_side",
        "user_in_tags",
    ],
)
def test_a_planted_taste_is_found_out_of_fold(name: str) -> None:
    known, sides = taste_world()
    assert auc(known.label, out_of_fold(known, sides, folds=4, seed=0)[name]) > 0.8


def test_labels_by_chance_are_not_predicted() -> None:
    """In fold they would be: factors learn them by heart."""
    known, sides = taste_world(noise=True)
    learnt = collaborative_features(known, known, sides)
    assert auc(known.label, learnt["factors_10"]) > 0.9
    for name, values in out_of_fold(known, sides, folds=4, seed=0).items():
        assert 0.44 < auc(known.label, values) < 0.56, name


def test_equal_seeds_give_equal_folds() -> None:
    known, sides = taste_world()
    one, two = (
        out_of_fold(known, sides, folds=3, seed=5),
        out_of_fold(known, sides, folds=3, seed=5),
    )
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert not np.array_equal(
        one["factors_10"], out_of_fold(known, sides, folds=3, seed=6)["factors_10"]
    )
