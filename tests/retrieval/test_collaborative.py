"""The towers of interactions alone.

Their formula, their gradients, a world that they must solve.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import sparse

from retrieval.interactions.collaborative import (
    CollaborativeConfig,
    CollaborativeTowers,
    by_recency,
    item_factors,
    spectral_vectors,
)
from retrieval.interactions.metrics import recall_and_ndcg
from retrieval.interactions.spectral import SparseProduct, normalised, right_factors
from tests.support.block_world import BEST, ITEMS, USERS, blocks

CPU = torch.device("cpu")


def trained(config: CollaborativeConfig, epochs: int) -> tuple[CollaborativeTowers, list[float]]:
    known, _ = blocks()
    model = CollaborativeTowers(known, config, item_factors(known, config.dimension, CPU))
    return model, [np.mean(list(model.train_epoch())).item() for _ in range(epochs)]


def spoiled(config: CollaborativeConfig, epochs: int) -> CollaborativeTowers:
    """Train from factors that know nothing."""
    known, _ = blocks()
    start = torch.randn(ITEMS, config.dimension, generator=torch.Generator().manual_seed(1))
    model = CollaborativeTowers(known, config, start)
    for _ in range(epochs):
        list(model.train_epoch())
    return model


@pytest.mark.parametrize("dimension", [4, 16])
def test_planted_blocks_are_found(dimension: int) -> None:
    known, held = blocks()
    model, losses = trained(CollaborativeConfig(dimension=dimension), epochs=5)
    popular = (
        torch.ones(len(known.toarray()), 1),
        torch.from_numpy(known.toarray().sum(0)).unsqueeze(1),
    )
    recall, _ = recall_and_ndcg(*model.vectors(), known, held)
    assert recall > 0.9 * BEST
    assert recall > 3 * recall_and_ndcg(*popular, known, held)[0]
    assert losses[-1] < losses[0]


def test_training_finds_the_blocks_from_a_random_start() -> None:
    known, held = blocks()
    config = CollaborativeConfig(dimension=16, temperature=0.3, learning_rate=2e-2)
    before, after = (
        recall_and_ndcg(*spoiled(config, n).vectors(), known, held)[0] for n in (0, 25)
    )
    assert before < 0.6 * BEST
    assert after > 0.9 * BEST


def test_an_item_that_the_factors_hardly_know_is_no_alarm() -> None:
    """Its vector is short, so its gradient is large when it is first met, here in the last step."""
    known, _ = blocks()
    taken = np.zeros((USERS, 1), np.float32)
    taken[np.random.default_rng([0, 0]).permutation(USERS)[-1]] = 1
    config = CollaborativeConfig(dimension=16, users_per_step=10, negatives=4)
    start = torch.cat([item_factors(known, 16, CPU), torch.full((1, 16), 1e-7)])
    model = CollaborativeTowers(sparse.csr_matrix(sparse.hstack([known, taken])), config, start)
    losses = list(model.train_epoch())
    assert len(losses) == 12 and np.isfinite(losses).all()


def test_the_same_seed_gives_the_same_bits() -> None:
    config = CollaborativeConfig(dimension=16, seed=3)
    first, again, other = (
        trained(c, 3)[0].vectors() for c in (config, config, CollaborativeConfig(dimension=16))
    )
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[1], other[1])


def test_a_score_is_cosine_over_temperature_and_popularity() -> None:
    known, _ = blocks()
    config = CollaborativeConfig(dimension=9, temperature=0.2, popularity=0.7, kept=0.5)
    users, items = trained(config, 1)[0].vectors()
    assert users.shape[1] == items.shape[1] == config.dimension
    taken = torch.from_numpy(known.toarray().sum(0))
    cosine = torch.nn.functional.cosine_similarity(users[:1, :-1], items[:, :-1])
    torch.testing.assert_close(
        items @ users[0], cosine / 0.2 + 0.5 * 0.7 * taken.log(), atol=1e-5, rtol=1e-5
    )


def test_newer_items_weigh_more_and_all_weights_sum_to_the_items() -> None:
    taken = sparse.csr_matrix(
        np.array([[1, 1, 1, 1, 0], [1, 0, 1, 0, 0], [0, 0, 0, 0, 0]], dtype=np.float32)
    )
    places = sparse.csr_matrix(
        np.array([[3, 0, 6, 4, 1], [0, 0, 0, 0, 2], [1, 2, 0, 0, 0]], dtype=np.float32)
    )
    weights = by_recency(taken, places, 1.0).toarray()
    mean = (1 + 1 / 4 + 1 / 2) / 3
    np.testing.assert_allclose(weights[0], [1 / mean, 1, 0.25 / mean, 0.5 / mean, 0], rtol=1e-6)
    np.testing.assert_allclose(weights[1:], taken.toarray()[1:])
    assert (by_recency(taken, places, 0.0) != taken).nnz == 0


def test_the_newest_item_decides_whom_a_user_is_like() -> None:
    """A user of two blocks, one item of the second the newest.

    Recency turns the user towards the second.
    """
    known, _ = blocks()
    known = sparse.csr_matrix(sparse.vstack([known, known[0] + known[1]]).sign(), dtype=np.float32)
    place = {item: 1 if known[1, item] else 9 for item in known[-1].indices}
    places = sparse.csr_matrix(
        (list(place.values()), ([known.shape[0] - 1] * len(place), list(place))), known.shape
    )
    config = CollaborativeConfig(dimension=16)
    model = CollaborativeTowers(known, config, item_factors(known, 16, CPU), places)
    cosine = []
    for recency in (0.0, 2.0):
        users, _ = model.vectors(replace(config, recency=recency))
        near = torch.nn.functional.cosine_similarity(users[-1:, :-1], users[:2, :-1])
        cosine.append(float(near[1] - near[0]))
    assert cosine[1] > cosine[0] + 0.2


def test_the_loss_is_the_softmax_over_all_items() -> None:
    """With all items as negatives.

    The mean over a user's items of -log P(item), users weighted by sqrt(items).
    """
    known, held = blocks()
    known = sparse.csr_matrix(
        known + sparse.diags(np.arange(known.shape[0]) % 2.0) @ held, dtype=np.float32
    )
    model = CollaborativeTowers(
        known, CollaborativeConfig(dimension=12), item_factors(known, 12, CPU)
    )
    users, items = model.vectors()
    shares = torch.log_softmax(users @ items.T, dim=1)
    taken = torch.from_numpy(known.toarray())
    each = -(shares * taken).sum(1) / taken.sum(1)
    weight = taken.sum(1).sqrt()
    loss = model._loss(np.arange(len(taken)), np.arange(ITEMS))
    assert float(loss.detach()) == pytest.approx(
        float((each * weight).sum() / weight.sum()), rel=1e-2
    )


def test_gradients_are_those_of_the_dense_formula() -> None:
    known, _ = blocks()
    config = CollaborativeConfig(dimension=12)
    model = CollaborativeTowers(known, config, item_factors(known, 12, CPU))
    model._loss(np.arange(known.shape[0]), np.arange(ITEMS)).backward()
    items, own = (table.detach().clone().requires_grad_() for table in model._tables)
    taken = torch.from_numpy(known.toarray())
    users = torch.nn.functional.normalize(taken @ items + own) / config.temperature
    logits = users @ torch.nn.functional.normalize(items).T + config.popularity * taken.sum(0).log()
    (-(torch.log_softmax(logits, 1) * taken).sum(1) / taken.sum(1)).mean().backward()
    for table, dense in zip(model._tables, (items, own), strict=True):
        torch.testing.assert_close(
            table.grad, dense.grad, atol=0.03 * float(dense.grad.abs().max()), rtol=0.05
        )


def test_users_and_items_without_interactions_have_finite_vectors() -> None:
    known, _ = blocks()
    known = sparse.csr_matrix(
        sparse.block_diag([known, sparse.csr_matrix((2, 3), dtype=np.float32)])
    )
    model = CollaborativeTowers(
        known, CollaborativeConfig(dimension=200), item_factors(known, 200, CPU)
    )
    losses = list(model.train_epoch())
    assert np.isfinite(losses).all()
    assert all(bool(vectors.isfinite().all()) for vectors in model.vectors())


def test_right_factors_are_those_of_a_full_decomposition() -> None:
    known, _ = blocks()
    matrix = normalised(known)
    exact = np.linalg.svd(matrix.toarray())[2][:4].T
    found = right_factors(SparseProduct(matrix, CPU), 4, seed=0, rounds=20).numpy()
    np.testing.assert_allclose(found @ found.T, exact @ exact.T, atol=1e-4)
    wide = right_factors(SparseProduct(matrix, CPU), ITEMS + 5, seed=0)
    assert wide.shape == (ITEMS, ITEMS + 5)
    assert not wide[:, min(matrix.shape) :].any()


def test_a_sparse_product_passes_its_gradient_on() -> None:
    known, _ = blocks()
    product, dense = SparseProduct(known, CPU), torch.randn(ITEMS, 3, requires_grad=True)
    weight = torch.randn(known.shape[0], 3)
    (product(dense) * weight).sum().backward()
    torch.testing.assert_close(dense.grad, torch.from_numpy(known.toarray()).T @ weight)
    torch.testing.assert_close(
        product.transposed(weight), torch.from_numpy(known.toarray()).T @ weight
    )


def test_the_closed_form_projects_on_the_factors() -> None:
    known, _ = blocks()
    factors = item_factors(known, 5, CPU)
    users, items = spectral_vectors(known, factors)
    root = np.sqrt(known.toarray().sum(0))
    projected = (known.toarray() / root) @ (factors @ factors.T).numpy() * root
    np.testing.assert_allclose((users @ items.T).numpy(), projected, atol=1e-4)
