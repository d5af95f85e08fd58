import math
from dataclasses import replace

import numpy as np
import pytest
from sklearn import metrics as reference

from ranking.data import RankingData
from ranking.metrics import auc, difference, ece, log_loss, ndcg_at_k, ndcg_per_request
from ranking.row_schema import RowSchema


def test_auc_by_hand() -> None:
    labels = np.array([1, 0, 1, 0.0])
    # LabelledPairs (positive, negative): 0.9>0.5, 0.9>0.1, 0.5=0.5, 0.5>0.1 -> 3.5 of 4.
    assert auc(labels, np.array([0.9, 0.5, 0.5, 0.1])) == 3.5 / 4
    assert math.isnan(auc(np.ones(3), np.arange(3.0)))


def test_log_loss_by_hand() -> None:
    assert log_loss(np.array([1.0, 0.0]), np.array([0.8, 0.4])) == pytest.approx(
        -(math.log(0.8) + math.log(0.6)) / 2
    )
    assert log_loss(np.array([1.0]), np.array([0.0])) == pytest.approx(-math.log(1e-7))


def test_ece_by_hand() -> None:
    labels, p = np.array([0.0, 1.0, 1.0, 1.0]), np.array([0.1, 0.2, 0.7, 0.8])
    # Two bins: |0.5 - 0.15| and |1 - 0.75|, half of the rows each.
    assert ece(labels, p, bins=2) == pytest.approx((0.35 + 0.25) / 2)
    assert ece(labels, np.full(4, 0.75), bins=2) == pytest.approx(0.0)


def test_ndcg_by_hand() -> None:
    gains = np.array([0, 1, 0, 1, 0, 0, 0, 0.0])
    scores = np.array([3, 2, 1, 0, 1, 2, 3, 4.0])
    request = np.array([7, 7, 7, 7, 9, 9, 9, 9])
    best = 1 + 1 / math.log2(3)
    whole = (1 / math.log2(3) + 1 / math.log2(5)) / best
    assert ndcg_per_request(gains, scores, request, 10)[0] == pytest.approx(whole)
    assert ndcg_per_request(gains, scores, request, 2)[0] == pytest.approx(1 / math.log2(3) / best)
    assert math.isnan(ndcg_per_request(gains, scores, request, 2)[1])
    assert ndcg_at_k(gains, scores, request, 2) == pytest.approx(1 / math.log2(3) / best)
    assert math.isnan(ndcg_at_k(gains[4:], scores[4:], request[4:]))


def test_ties_do_not_profit_from_row_order() -> None:
    request = np.zeros(4, dtype=np.int64)
    first = ndcg_at_k(np.array([1.0, 0, 0, 0]), np.zeros(4), request)
    last = ndcg_at_k(np.array([0, 0, 0, 1.0]), np.zeros(4), request)
    assert first == pytest.approx(last)
    assert first == pytest.approx(np.mean(1 / np.log2([2, 3, 4, 5])))


@pytest.mark.parametrize("levels", [3, 1000])
def test_agree_with_scikit_learn(levels: int) -> None:
    random = np.random.default_rng(levels)
    requests, candidates = 60, 25
    scores = random.integers(0, levels, requests * candidates) / levels
    labels = (random.random(len(scores)) < 0.1 + 0.3 * scores).astype(np.float64)
    p = 0.05 + 0.9 * scores
    gains = labels * random.integers(1, 4, len(scores))
    request = np.repeat(np.arange(requests), candidates)
    assert auc(labels, scores) == pytest.approx(reference.roc_auc_score(labels, scores))
    assert log_loss(labels, p) == pytest.approx(reference.log_loss(labels, p))
    ours = ndcg_per_request(gains, scores, request, 10)
    some = ~np.isnan(ours)
    theirs = reference.ndcg_score(
        gains.reshape(requests, -1)[some], scores.reshape(requests, -1)[some], k=10
    )
    assert ours[some].mean() == pytest.approx(theirs)


def test_ece_of_true_probabilities_is_small() -> None:
    random = np.random.default_rng(0)
    p = random.random(50_000)
    labels = (random.random(50_000) < p).astype(np.float64)
    assert ece(labels, p) < 0.01 < ece(labels, p**2)


def test_requests_may_weigh_differently() -> None:
    gains, scores = np.array([1, 0, 0, 1.0]), np.array([2, 1, 2, 1.0])
    request = np.array([0, 0, 1, 1])
    second = 1 / math.log2(3)
    assert ndcg_at_k(gains, scores, request) == pytest.approx((1 + second) / 2)
    assert ndcg_at_k(gains, scores, request, weights=np.array([1.0, 3.0])) == pytest.approx(
        (1 + 3 * second) / 4
    )


def test_difference_of_the_same_requests_by_hand() -> None:
    first, second = np.array([0.5, 1.0, 0.0, np.nan]), np.array([0.5, 0.4, 0.3, np.nan])
    others = np.arange(4)
    # Differences 0, .6, -.3: mean .1, squares about it .01, .25, .16, each a third of a third.
    mean, error = difference(first, second, others)
    assert (mean, error) == (pytest.approx(0.1), pytest.approx(math.sqrt(0.42) / 3))
    mean, error = difference(first, second, others, weights=np.array([1.0, 1.0, 2.0, 9.0]))
    assert (mean, error) == (
        pytest.approx(0.0),
        pytest.approx(math.sqrt((0.0 + 0.36 + 4 * 0.09) / 16)),
    )
    # The first two of one user: -.1 and .5 are .4 together, which is what the third is off the
    # other way.
    assert difference(first, second, np.array([7, 7, 3, 3]))[1] == pytest.approx(
        math.sqrt(0.16 + 0.16) / 3
    )
    assert difference(first, first, others)[1] == 0.0 and difference(
        first[3:], second[3:], others[3:]
    ) == (0.0, 0.0)


def test_a_request_weighs_as_its_positive_rows() -> None:
    labels = np.float32([[1], [0], [1], [0], [0]])
    weight = np.float32([4, 9, 2, 9, 9])
    data = RankingData(
        np.zeros((5, 1), np.float32),
        np.zeros((5, 0), np.int32),
        labels,
        np.array([0, 0, 0, 1, 1]),
        weight,
    )
    assert data.relevance(RowSchema(("x",), (), (), ("click",), (1.0,))).tolist() == [4, 0, 2, 0, 0]
    both = replace(data, labels=np.float32([[1, 0], [0, 1], [0, 1], [0, 0], [0, 0]]))
    schema = RowSchema(("x",), (), (), ("click", "dislike"), (1.0, 0.1), relevant=(True, False))
    assert both.relevance(schema).tolist() == [4, 0, 0, 0, 0] and both.positive().sum() == 3
    assert RowSchema.from_dict(schema.to_dict()) == schema
    with pytest.raises(ValueError, match="relevant"):
        replace(schema, relevant=(False, False))
    assert data.request_weights().tolist() == [3.0, 1.0]
    assert data.take(np.array([2])).request_weights().tolist() == [2.0]
