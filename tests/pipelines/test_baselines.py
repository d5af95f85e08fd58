"""Baselines on matrices whose answers are known."""

import numpy as np
import pytest
from scipy import sparse

from pipelines.evaluation import baselines
from pipelines.evaluation.baselines import Ease, Ials, ItemKnn, WithPopularity

#                 items: 0 1 2 3
INTERACTIONS = np.array(
    [[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 1, 1], [1, 0, 0, 1]], dtype=np.float32
)


def rows(matrix):
    return sparse.csr_matrix(np.asarray(matrix, dtype=np.float32))


def blocks(groups=4, users=60, items=12, share=0.5, seed=0):
    """Users who interact with items of their own group only; returns the matrix and the groups."""
    generator = np.random.default_rng(seed)
    group = np.repeat(np.arange(groups), users)
    own = group[:, None] == np.repeat(np.arange(groups), items)[None, :]
    return (own & (generator.random(own.shape) < share)).astype(np.float32), own


def test_ease_is_its_closed_form():
    inverse = np.linalg.inv(INTERACTIONS.T @ INTERACTIONS + 2.0 * np.eye(4))
    expected = np.eye(4) - inverse / np.diag(inverse)
    model = Ease(rows(INTERACTIONS), l2=2.0)
    assert np.allclose(model.weights, expected, atol=1e-6)
    assert np.array_equal(np.diag(model.weights), np.zeros(4))
    assert np.allclose(model.scores(rows([[1, 0, 0, 1]])), expected[0] + expected[3], atol=1e-6)


def test_ease_solves_its_own_problem():
    """Each column of B is the ridge regression of one item on all others."""
    model = Ease(rows(INTERACTIONS), l2=0.5)
    for item in range(4):
        others = [column for column in range(4) if column != item]
        x, y = INTERACTIONS[:, others], INTERACTIONS[:, item]
        expected = np.linalg.solve(x.T @ x + 0.5 * np.eye(3), x.T @ y)
        assert np.allclose(model.weights[others, item], expected, atol=1e-5)


def test_ease_says_when_it_cannot_be_solved():
    with pytest.raises(ValueError, match="cannot be inverted"):
        Ease(rows(INTERACTIONS), l2=-5.0)


@pytest.mark.parametrize("entries", [20_000_000, 1])
def test_item_knn_by_hand(monkeypatch, entries):
    monkeypatch.setattr(
        baselines, "_BLOCK_ENTRIES", entries
    )  # in one block, and in one for each item
    similarity = ItemKnn(rows(INTERACTIONS), neighbours=4, shrinkage=1.0).similarity.toarray()
    # Together: 0-1 twice, 0-2 once, 0-3 once, 1-2 twice, 2-3 once; 3, 3, 3 and 2 users.
    assert similarity[0] == pytest.approx([0, 2 / 4, 1 / 4, 1 / (np.sqrt(6) + 1)])
    assert similarity[1] == pytest.approx([2 / 4, 0, 2 / 4, 0])
    nearest = ItemKnn(rows(INTERACTIONS), neighbours=1, shrinkage=1.0)
    assert nearest.similarity.toarray()[1].tolist() == [0.5, 0, 0, 0]  # equals go by code
    assert nearest.similarity.toarray()[0].tolist() == [0, 0.5, 0, 0]
    whole = ItemKnn(rows(INTERACTIONS), neighbours=4, shrinkage=0.0)
    assert whole.scores(rows([[1, 0, 0, 1]]))[0] == pytest.approx(
        [1 / 6**0.5, 2 / 3, 1 / 3 + 1 / 6**0.5, 1 / 6**0.5]
    )


def test_item_knn_takes_items_without_interactions():
    model = ItemKnn(rows([[0, 1, 0, 1, 0], [0, 1, 0, 1, 0]]), neighbours=2, shrinkage=0.0)
    assert model.similarity.toarray()[1].tolist() == pytest.approx([0, 0, 0, 1, 0])
    assert model.similarity.nnz == 2


@pytest.mark.parametrize(
    "fit",
    [
        lambda matrix: ItemKnn(matrix, neighbours=20, shrinkage=5.0),
        lambda matrix: Ease(matrix, l2=10.0),
        lambda matrix: Ials(matrix, factors=8, alpha=5.0, regularization=1.0),
    ],
    ids=["item_knn", "ease", "ials"],
)
def test_blocks_are_found_for_histories_that_were_not_learned_from(fit):
    taken, own = blocks()
    model, (new, belongs) = fit(rows(taken)), blocks(users=10, share=0.3, seed=1)
    scores = np.where(new > 0, -np.inf, model.scores(rows(new)))
    best = np.argsort(-scores, axis=1)[:, :3]
    right = np.take_along_axis(belongs, best, axis=1).mean()
    assert right > 0.95  # by chance: a quarter


def test_ials_is_the_same_each_time_and_knows_nothing_of_an_empty_history():
    taken, _ = blocks()
    first, second = (Ials(rows(taken), factors=4, alpha=1.0, regularization=1.0) for _ in range(2))
    assert np.array_equal(first.scores(rows(taken[:5])), second.scores(rows(taken[:5])))
    assert not first.scores(rows(np.zeros((1, taken.shape[1])))).any()


def test_without_history_popularity_decides():
    model = WithPopularity(
        ItemKnn(rows(INTERACTIONS), neighbours=4, shrinkage=0.0), rows(INTERACTIONS[:4])
    )
    found = model.scores(rows([[0, 0, 0, 0], [0, 1, 0, 0]]))
    assert np.lexsort((np.arange(4), -found[0])).tolist() == [
        1,
        2,
        0,
        3,
    ]  # taken up 3, 3, 2 and once
    assert np.argsort(-found[1])[:2].tolist() == [2, 0]  # both 2/3 by kNN
