"""The checks before a sequence tower is trained.

Sound ones pass, ones that cannot learn or that see labels do not.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from feature_repo.sanity import CannotLearn
from retrieval.interactions.collaborative import (
    CollaborativeConfig,
    CollaborativeTowers,
    item_factors,
)
from retrieval.sequences.losses import SoftmaxLoss
from retrieval.sequences.model import SequenceTower, SequenceTowerConfig
from retrieval.sequences.sanity import check_sequences
from tests.support.block_world import blocks

ITEMS, ROWS, LENGTH = 80, 128, 12


def batch() -> tuple[Tensor, Tensor]:
    drawn = torch.from_numpy(np.random.default_rng(0).integers(1, ITEMS + 1, (ROWS, LENGTH + 1)))
    histories, targets = drawn[:, :-1].clone(), drawn[:, 1:].clone()
    histories[5, 3:], targets[5, 3:] = 0, 0
    return histories, targets


def tower(items: int = ITEMS) -> SequenceTower:
    config = SequenceTowerConfig(items, width=32, heads=1, layers=1, window=LENGTH)
    return SequenceTower(config, torch.Generator().manual_seed(1))


def loss(items: int = ITEMS) -> SoftmaxLoss:
    return SoftmaxLoss(torch.ones(items + 1), torch.Generator(), exact=items, sampled=0)


def test_a_sound_tower_passes() -> None:
    check_sequences(tower, loss(), *batch())


def test_equal_histories_that_went_on_differently_are_no_alarm() -> None:
    """Of few items, many histories begin alike.

    No tower can know which of two next items is meant.
    """
    drawn = torch.from_numpy(np.random.default_rng(0).integers(1, 4, (ROWS, 3)))
    check_sequences(lambda: tower(3), loss(3), drawn[:, :-1].clone(), drawn[:, 1:].clone())


def test_a_tower_without_gradients_is_refused() -> None:
    def stopped(users: Tensor, table: Tensor, targets: Tensor) -> Tensor:
        return loss()(users.detach(), table.detach(), targets) + 0.0 * table.sum()

    with pytest.raises(CannotLearn, match="one batch cannot be overfitted"):
        check_sequences(tower, stopped, *batch())


class Peeking(SequenceTower):
    """Is told the next items, as by a mask with an error."""

    told: Callable[[Tensor], Tensor]

    def forward(self, histories: Tensor) -> Tensor:
        return torch.nn.functional.embedding(
            self.told(histories), self.items
        ) + 0.0 * super().forward(histories)


def test_a_tower_that_sees_the_next_items_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was dealt out reaches the held-out vectors, which is what the check is for."""
    histories, targets = batch()
    dealt: list[Tensor] = []
    permuted = torch.randperm

    def remembered(n: int, generator: torch.Generator) -> Tensor:
        dealt.append(permuted(n, generator=generator))
        return dealt[-1]

    def told(shown: Tensor) -> Tensor:
        half = ROWS // 2
        held = torch.equal(shown, histories[half:]) and len(dealt) == 2
        part = slice(half, None) if held else slice(None, half)
        right, known = targets[part].clone(), targets[part] > 0
        if dealt:
            right[known] = right[known][dealt[1 if held else 0]]
        return right

    monkeypatch.setattr(torch, "randperm", remembered)
    monkeypatch.setattr(Peeking, "told", staticmethod(told), raising=False)

    def build() -> SequenceTower:
        return Peeking(tower().config, torch.Generator().manual_seed(1))

    with pytest.raises(CannotLearn, match="held-out labels leak"):
        check_sequences(build, loss(), histories, targets)


def test_collaborative_towers_stop_at_a_loss_that_is_no_number() -> None:
    known, _ = blocks()
    model = CollaborativeTowers(
        known, CollaborativeConfig(dimension=8), item_factors(known, 8, torch.device("cpu"))
    )
    with torch.no_grad():
        model._tables[0][0] = float("nan")
    with pytest.raises(CannotLearn, match="collaborative towers: loss nan"):
        list(model.train_epoch())
