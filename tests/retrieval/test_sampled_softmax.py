"""The loss against the formula worked out example by example."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from retrieval.towers.losses import sampled_softmax

CATALOGUE = 10
TEMPERATURE = 0.2
CODES = [3, 5, 3, 9, 5, 1]
"""Three examples and three uniform negatives.

The third example takes the first's item, a negative is the second's.
"""
POPULARITY = [0.5, 0.2, 0.5, 0.05, 0.2, 0.0]
WEIGHTS = [1.0, 2.0, 0.5]


def vectors(seed: int, n: int) -> np.ndarray:
    raw = np.random.default_rng(seed).normal(size=(n, 4))
    return raw / np.linalg.norm(raw, axis=1, keepdims=True)


def by_hand(users: np.ndarray, items: np.ndarray, logq: bool = True) -> np.ndarray:
    batch, uniform = len(users), len(items) - len(users)
    losses = []
    for row in range(batch):
        positive = users[row] @ items[row] / TEMPERATURE
        logits = [positive]
        for column in range(len(items)):
            if CODES[column] == CODES[row]:
                continue
            drawn = batch * POPULARITY[column] + uniform / CATALOGUE if logq else 1.0
            logits.append(users[row] @ items[column] / TEMPERATURE - np.log(drawn))
        losses.append(np.log(np.exp(logits).sum()) - positive)
    return np.array(losses)


def loss(
    users: np.ndarray, items: np.ndarray, weights: list[float] | None, logq: bool = True
) -> float:
    result = sampled_softmax(
        torch.from_numpy(users),
        torch.from_numpy(items),
        torch.tensor(CODES),
        popularity=torch.tensor(POPULARITY, dtype=torch.float64) if logq else None,
        catalogue=CATALOGUE,
        temperature=torch.tensor(TEMPERATURE, dtype=torch.float64),
        weights=None if weights is None else torch.tensor(weights),
    )
    return float(result)


def test_loss_is_the_formula() -> None:
    users, items = vectors(0, 3), vectors(1, 6)
    losses = by_hand(users, items)
    assert loss(users, items, None) == pytest.approx(losses.mean(), rel=1e-5)
    assert loss(users, items, WEIGHTS) == pytest.approx(
        np.average(losses, weights=WEIGHTS), rel=1e-5
    )


def test_without_correction_it_is_the_plain_softmax() -> None:
    users, items = vectors(0, 3), vectors(1, 6)
    assert loss(users, items, None, logq=False) == pytest.approx(
        by_hand(users, items, logq=False).mean(), rel=1e-5
    )


def test_accidental_hits_take_no_part() -> None:
    users, items = vectors(0, 3), vectors(1, 6)
    moved = items.copy()
    moved[4] = users[
        1
    ]  # column 4 is the second example's own item: only the other two may see it move
    before, after = by_hand(users, items), by_hand(users, moved)
    assert after[1] == before[1] and after[0] != before[0]
    assert loss(users, moved, [0.0, 1.0, 0.0]) == pytest.approx(loss(users, items, [0.0, 1.0, 0.0]))


def test_a_batch_of_one_item_costs_nothing() -> None:
    same = torch.tensor([7, 7])
    unit = torch.nn.functional.normalize(torch.ones(2, 4), dim=1)
    assert (
        float(
            sampled_softmax(
                unit,
                unit,
                same,
                popularity=torch.tensor([1.0, 1.0]),
                catalogue=5,
                temperature=torch.tensor(0.1),
            )
        )
        == 0.0
    )
