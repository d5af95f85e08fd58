"""Metrics against hand-worked cases and scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import label_ranking_average_precision_score, ndcg_score, top_k_accuracy_score

from pipelines.evaluation.metrics import (
    Catalogue,
    K,
    accuracy,
    deep_gains,
    gains,
    gini,
    list_figures,
    recall,
)
from pipelines.evaluation.replayed_requests import Lists, rank_all

RANKS = np.array([0, 1, 9, 10, -1])


def test_gains_by_hand():
    of = gains(RANKS)
    assert of["recall@10"].tolist() == [1, 1, 1, 0, 0]
    assert of["ndcg@10"] == pytest.approx([1, 1 / np.log2(3), 1 / np.log2(11), 0, 0])
    assert of["mrr@10"] == pytest.approx([1, 0.5, 0.1, 0, 0])
    found = accuracy(RANKS)
    assert found["hit_rate@10"] == found["recall@10"] == recall(RANKS, 10) == pytest.approx(0.6)
    assert found["map@10"] == found["mrr@10"] == pytest.approx(1.6 / 5)
    assert deep_gains(np.array([99, 100, 499, 500]))["recall@100"].tolist() == [1, 0, 0, 0]
    assert deep_gains(np.array([99, 100, 499, 500]))["recall@500"].tolist() == [1, 1, 1, 0]
    assert accuracy(np.zeros(0, dtype=np.int64)) == dict.fromkeys(found, 0.0)


def test_accuracy_is_scikit_learns():
    generator = np.random.default_rng(3)
    scores, right = generator.random((200, 40)), generator.integers(1, 40, 200)
    allowed = np.ones(scores.shape, dtype=bool)
    ranks = rank_all(scores, allowed, right.astype(np.int32)).ranks
    ours = accuracy(ranks)
    truth = np.zeros_like(scores)
    truth[np.arange(200), right] = 1
    assert ours["ndcg@10"] == pytest.approx(ndcg_score(truth, scores, k=10), abs=1e-12)
    labels = np.arange(40)
    assert ours["recall@10"] == pytest.approx(
        top_k_accuracy_score(right, scores, k=10, labels=labels)
    )
    assert recall(ranks, 25) == pytest.approx(
        top_k_accuracy_score(right, scores, k=25, labels=labels)
    )
    # What is beyond the tenth place counts nothing in the list of ten.
    found = (ranks >= 0) & (ranks < 10)
    mean = label_ranking_average_precision_score(truth[found], scores[found]) * found.mean()
    assert ours["map@10"] == ours["mrr@10"] == pytest.approx(mean)


def test_ranking_passes_over_what_is_not_allowed_and_breaks_ties_by_code():
    scores = np.array([[9.0, 5.0, 7.0, 5.0, 1.0]])
    allowed = np.array([[False, True, False, True, True]])
    found = [rank_all(scores, allowed, np.array([right], dtype=np.int32)) for right in (1, 3, 4, 2)]
    assert [int(lists.ranks[0]) for lists in found] == [0, 1, 2, -1]
    assert found[0].top.tolist() == [[1, 3, 4] + [0] * (K - 3)]


def test_places_agree_with_the_lists():
    generator = np.random.default_rng(5)
    scores = generator.integers(0, 9, (50, 60)).astype(float)  # many ties
    allowed = generator.random(scores.shape) < 0.7
    right = generator.integers(1, 60, 50).astype(np.int32)
    lists = rank_all(scores, allowed, right)
    for row in range(50):
        order = [code for code in np.lexsort((np.arange(60), -scores[row])) if allowed[row, code]]
        assert lists.top[row].tolist() == order[:K]
        assert lists.ranks[row] == (order.index(right[row]) if right[row] in order else -1)


def test_lists_of_no_batches_are_empty():
    assert Lists.join([]).top.shape == (0, K)


def test_list_figures_by_hand():
    vectors = np.array([[0, 0], [1, 0], [0, 1], [1, 0], [-1, 0]], dtype=np.float32)
    categories = np.array([[0, 0], [1, 2], [2, 0], [3, 0], [0, 0]], dtype=np.int32)
    catalogue = Catalogue(np.array([0.0, 4.0, 2.0, 1.0, 0.0]), vectors, categories)
    lists = np.zeros((3, K), dtype=np.int32)
    lists[0, :3] = [1, 2, 3]  # cosines 0, 1, 0; 1 and 2 share a category
    lists[1, :2] = [1, 4]  # cosine -1, nothing in common
    lists[2, :1] = [1]  # no pair
    found = list_figures(lists, catalogue)
    assert found["coverage@10"] == 1.0
    assert found["diversity@10"] == pytest.approx(((1 - 1 / 3) + 2) / 2)
    assert found["category_diversity@10"] == pytest.approx((2 / 3 + 1) / 2)
    # percentiles of counts 4, 2, 1, 0 are 7/8, 5/8, 3/8, 1/8; shown 3, 1, 1, 1 times
    assert found["popularity@10"] == pytest.approx((3 * 7 + 5 + 3 + 1) / 8 / 6)
    assert found["gini@10"] == pytest.approx(gini(np.array([3.0, 1, 1, 1])))
    share = (np.array([4, 2, 1, 0]) + 1) / (7 + 5)
    assert found["novelty@10"] == pytest.approx(-np.log2(share) @ [3, 1, 1, 1] / 6)
    no_categories = Catalogue(catalogue.popularity, vectors, np.zeros_like(categories))
    assert "category_diversity@10" not in list_figures(lists, no_categories)


def test_gini_by_hand():
    assert gini(np.array([2.0, 2, 2, 2])) == 0.0
    assert gini(np.array([0.0, 0, 0, 8])) == pytest.approx(3 / 4)  # (n - 1) / n: all to one
    # The mean absolute difference over twice the mean: of 1 and 3, (0 + 2 + 2 + 0) / 4 / 4.
    assert gini(np.array([1.0, 3])) == pytest.approx(0.25)
    assert gini(np.zeros(5)) == 0.0
