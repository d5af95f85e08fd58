"""Position bias: planted, estimated, and weighed against."""

from __future__ import annotations

import numpy as np
import pytest

from feature_repo.sanity import Guard
from pipelines.training.position_bias import MAX_WEIGHT, PositionBias
from ranking.config import LogisticConfig, PopularityConfig, RankerConfig, TreeConfig
from ranking.data import RankingData
from ranking.metrics import ndcg_at_k
from ranking.row_schema import RowSchema
from ranking.training.fit import fit
from ranking.training.task import FitTask
from ranking.transform import RowTransform

SCHEMA = RowSchema(("liking", "fame"), (), (), ("click",), (1.0,))
SHOWN = 8
EXAMINED = 1 / (1 + np.arange(SHOWN))
"""The planted probability that a position is examined."""


def served(seed: int, requests: int) -> tuple[RankingData, np.ndarray, np.ndarray]:
    """Return what a server showed that ranks by fame although liking counts more, and relevance.

    Positions and scores (fame) follow from the rows: the first of a request is at position 0.
    """
    random = np.random.default_rng(seed)
    fame = random.normal(size=(requests, 1)) + random.normal(size=(requests, SHOWN))
    fame = -np.sort(-fame, axis=1)
    liking = random.normal(size=(requests, SHOWN))
    relevance = 1 / (1 + np.exp(1.0 - 1.2 * liking - 0.4 * fame))
    clicked = random.random((requests, SHOWN)) < relevance * EXAMINED
    numeric = np.stack([liking.ravel(), fame.ravel()], axis=1).astype(np.float32)
    n = requests * SHOWN
    data = RankingData(
        numeric,
        np.zeros((n, 0), dtype=np.int32),
        clicked.reshape(n, 1).astype(np.float32),
        np.repeat(np.arange(requests), SHOWN),
    )
    return data, np.tile(np.arange(SHOWN), requests), relevance.ravel()


def estimate(data: RankingData, position: np.ndarray) -> PositionBias:
    return PositionBias.estimate(position, data.numeric[:, 1], data.labels[:, 0] > 0)


def test_two_positions_by_hand() -> None:
    """Two scores of relevance .4 and .2, two positions of which one is seen half as often."""
    cells = [(0, 0.9, 400), (0, 0.1, 200), (1, 0.9, 200), (1, 0.1, 100)]
    position = np.repeat([cell[0] for cell in cells], 1_000)
    score = np.repeat(np.float32([cell[1] for cell in cells]), 1_000)
    clicked = np.concatenate([np.arange(1_000) < cell[2] for cell in cells])
    bias = PositionBias.estimate(position, score, clicked)
    assert bias.propensity == pytest.approx([1.0, 0.5], abs=1e-4)
    assert [(one["position"], one["shown"], one["click_rate"]) for one in bias.table()] == [
        (0, 2000, 0.3),
        (1, 2000, 0.15),
    ]
    weights = bias.weights(np.array([0, 1, 1, 7]), np.array([True, True, False, True]))
    assert weights.dtype == np.float32 and weights == pytest.approx([1.0, 2.0, 1.0, 2.0], abs=1e-3)


def test_the_planted_bias_is_found_where_click_rates_exaggerate_it() -> None:
    data, position, _ = served(1, requests=4_000)
    bias = estimate(data, position)
    assert bias.propensity == pytest.approx(EXAMINED, abs=0.05)
    rate = bias.clicked / bias.shown
    assert (rate / rate[0])[2:].max() < bias.propensity[2:].max()
    assert np.abs(rate / rate[0] - EXAMINED).max() > np.abs(bias.propensity - EXAMINED).max()


def test_without_bias_nothing_is_weighed() -> None:
    data, position, relevance = served(2, requests=4_000)
    all_seen = np.random.default_rng(3).random(len(relevance)) < relevance
    bias = PositionBias.estimate(position, data.numeric[:, 1], all_seen)
    assert bias.propensity.min() > 0.9


@pytest.mark.parametrize("kind", ["logistic", "lightgbm", "lambdarank"])
def test_with_weights_the_planted_order_is_recovered_better(kind: str) -> None:
    data, position, _ = served(4, requests=3_000)
    weight = estimate(data, position).weights(position, data.labels[:, 0] > 0)
    fresh, _, relevance = served(5, requests=500)
    found = {}
    for name, given in (("plain", None), ("weighted", weight)):
        rows = RankingData(data.numeric, data.categorical, data.labels, data.request, given)
        first, last = rows.take(np.arange(20_000)), rows.take(np.arange(20_000, len(rows)))
        config = RankerConfig(
            logistic=LogisticConfig(),
            trees=TreeConfig(rounds=60, learning_rate=0.1, leaves=7, threads=1),
            popularity=PopularityConfig("fame"),
        )
        task = FitTask(first, last, RowTransform.fit(first.numeric), SCHEMA, config)
        p = fit(kind, task, Guard(kind), lambda *_: None).predict(fresh.numeric, fresh.categorical)
        found[name] = ndcg_at_k(relevance, p[:, 0], fresh.request, SHOWN)
    assert found["weighted"] > found["plain"] + 0.001
    assert found["weighted"] > 0.97


def test_weights_are_bounded_and_rare_positions_stand_together() -> None:
    position = np.r_[np.zeros(5_000), np.ones(5_000), np.full(5, 2), np.full(5, 9)].astype(np.int64)
    clicked = np.zeros(len(position), dtype=bool)
    clicked[:1_000], clicked[5_000:5_002] = True, True
    bias = PositionBias.estimate(position, np.zeros(len(position), dtype=np.float32), clicked)
    assert len(bias.propensity) == 2 and bias.shown.tolist() == [5_000, 5_010]
    assert bias.weights(np.array([0, 1, 9]), np.ones(3, dtype=bool)).tolist() == pytest.approx(
        [1.0, MAX_WEIGHT, MAX_WEIGHT]
    )


def test_nothing_was_clicked() -> None:
    bias = PositionBias.estimate(
        np.arange(3), np.zeros(3, dtype=np.float32), np.zeros(3, dtype=bool)
    )
    assert np.isfinite(bias.propensity).all() and bias.table()[0]["click_rate"] == 0.0
