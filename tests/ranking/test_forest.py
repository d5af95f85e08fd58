"""Trees over a request's candidates against LightGBM itself: equal to the last bit."""

from __future__ import annotations

import lightgbm
import numpy as np
import pytest

from feature_repo.sanity import Guard
from ranking.config import RankerConfig, TreeConfig
from ranking.data import RankingData
from ranking.models.forest import Forest, UnsupportedTrees
from ranking.models.trees import TreeRanker
from ranking.row_schema import RowSchema
from ranking.rows import ItemRows, PairRows
from ranking.training.fit_trees import fit_lightgbm
from ranking.training.task import FitTask
from ranking.transform import RowTransform

CATEGORIES = 200
SCHEMA = RowSchema(
    numeric=("pair", "sparse_pair", "user", "item", "sparse_item"),
    categorical=("user_kind", "item_kind"),
    cardinalities=(CATEGORIES, CATEGORIES),
    heads=("click", "buy"),
    head_weights=(1.0, 2.0),
)


def world(seed: int, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return rows and labels.

    Every column says something of a row's labels. In sparse columns, a tenth is missing.
    """
    random = np.random.default_rng(seed)
    numeric = np.round(random.normal(size=(rows, 5)), 2).astype(np.float32)
    for column in (1, 4):
        numeric[random.random(rows) < 0.1, column] = np.nan
    codes = random.integers(0, CATEGORIES, size=(rows, 2)).astype(np.int32)
    effect = np.random.default_rng(0).normal(size=(2, CATEGORIES))
    worth = (
        np.nan_to_num(numeric, nan=1.0).sum(axis=1)
        + effect[0][codes[:, 0]]
        + effect[1][codes[:, 1]]
    )
    chance = 1 / (1 + np.exp(-np.stack([worth, worth - 1], axis=1)))
    return numeric, codes, (random.random((rows, 2)) < chance).astype(np.float32)


def trained(leaves: int, rounds: int = 70) -> TreeRanker:
    parts = []
    for seed, rows in ((1, 20_000), (2, 2_000)):
        numeric, codes, labels = world(seed, rows)
        parts.append(RankingData(numeric, codes, labels, np.arange(rows, dtype=np.int64)))
    trees = TreeConfig(
        rounds=rounds, learning_rate=0.1, leaves=leaves, min_rows_in_leaf=20, threads=1
    )
    task = FitTask(
        *parts,
        transform=RowTransform.fit(parts[0].numeric),
        schema=SCHEMA,
        config=RankerConfig(trees=trees, seed=3),
    )
    return fit_lightgbm(task, Guard("lightgbm"), lambda _kind, _figures: None)


@pytest.fixture(scope="module")
def ranker() -> TreeRanker:
    return trained(leaves=31)


def request(seed: int, count: int) -> tuple[PairRows, ItemRows]:
    random = np.random.default_rng(seed)
    numeric, codes, _ = world(seed, 300)
    codes[:20, 1] = [
        -1,
        CATEGORIES,
        CATEGORIES + 70,
        5,
        2**30,
    ] * 4  # not what a vocabulary gives, and yet 0
    items = ItemRows(numeric[:, 3:], codes[:, 1:], np.zeros(300), np.zeros(300))
    chosen = random.integers(0, 300, count).astype(np.int32)
    user = numeric[0, 2:3] if seed % 3 else np.array([np.nan], dtype=np.float32)
    return PairRows(numeric[random.integers(0, 300, count), :2], user, codes[1, :1], chosen), items


def test_the_same_as_lightgbm_to_the_bit(ranker: TreeRanker) -> None:
    assert sum(booster.num_trees() for booster in ranker.boosters) > 64  # several blocks
    kinds = {int(value) & 3 for booster in ranker.boosters for value in decision_types(booster)}
    assert {0, 1, 2} <= kinds  # numbers, categories, and missing values that go left
    for seed in range(12):
        pairs, items = request(seed, count=1 + 57 * seed)
        score = ranker.for_items(items)
        assert np.array_equal(score(pairs), ranker.predict(*pairs.join(items)))


def decision_types(booster: lightgbm.Booster) -> list[str]:
    lines = [
        line for line in booster.model_to_string().splitlines() if line.startswith("decision_type=")
    ]
    return [value for line in lines for value in line.removeprefix("decision_type=").split()]


def test_trees_are_not_left_out(ranker: TreeRanker) -> None:
    pairs, items = request(1, count=200)
    forest = Forest.read(ranker.boosters[0].model_to_string())
    fewer = Forest.read(ranker.boosters[0].model_to_string(num_iteration=33))
    sizes = np.asarray(SCHEMA.cardinalities, dtype=np.int32)
    assert len(fewer.nodes.leaves) == 33 and not np.allclose(
        forest(pairs, items, sizes), fewer(pairs, items, sizes)
    )


def test_no_candidates_and_a_tree_without_a_split(ranker: TreeRanker) -> None:
    pairs, items = request(1, count=0)
    assert ranker.for_items(items)(pairs).shape == (0, 2)
    data = lightgbm.Dataset(np.zeros((50, 7)), np.arange(50) % 2, params={"verbosity": -1})
    stump = lightgbm.train({"objective": "regression", "verbosity": -1}, data, 2)
    pairs, items = request(1, count=3)
    found = Forest.read(stump.model_to_string())(
        pairs, items, np.asarray(SCHEMA.cardinalities, dtype=np.int32)
    )
    assert np.array_equal(found, stump.predict(np.zeros((3, 7))))


def test_trees_with_too_many_leaves_are_lightgbms() -> None:
    ranker = trained(leaves=100, rounds=2)
    with pytest.raises(UnsupportedTrees, match="leaves"):
        Forest.read(ranker.boosters[0].model_to_string())
    pairs, items = request(1, count=40)
    assert np.array_equal(ranker.for_items(items)(pairs), ranker.predict(*pairs.join(items)))
