"""Checks before the towers are trained: they overfit one batch and learn nothing from noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from feature_repo.sanity import Guard, check_chance, check_learnt
from retrieval.towers.config import TowerTrainingConfig
from retrieval.towers.examples import Examples, user_inputs
from retrieval.towers.model import TwoTowers
from retrieval.towers.training_step import TrainingStep

_BATCH, _STEPS = 64, 60
_SHUFFLED, _SHUFFLED_STEPS = 2_000, 30
_RATE = 1e-2
_STANDARD_ERRORS = 4.0


@dataclass(frozen=True)
class Checks:
    """Runs both checks on towers of their own.

    Attributes:
        build: makes untrained towers.
        training: examples to learn from.
        popularity: float32 ``[items]``, on the device to train on.
        config: settings of the training.

    """

    build: Callable[[], TwoTowers]
    training: Examples
    popularity: Tensor
    config: TowerTrainingConfig

    def overfit_one_batch(self) -> list[float]:
        """Overfit 64 examples; return the loss before and after.

        Raises:
            CannotLearn: it did not fall below half.

        """
        rows = np.linspace(0, len(self.training) - 1, _BATCH).astype(np.int64)
        _, losses = self._learn([self.training[rows]] * _STEPS, "towers, one batch")
        check_learnt("towers", losses[0], losses[-1])
        return [losses[0], losses[-1]]

    def shuffled_items(self) -> list[float]:
        """Learn from 1,000 examples with shuffled items, and order 1,000 others, shuffled too.

        The AUC is how often a user's item scores above another example's. Shuffled items make every
        pairing equally likely, so it is .5 whatever the towers do.

        Returns:
            The AUC and the tolerance, four standard errors; empty if there are too few examples.

        Raises:
            CannotLearn: the AUC is farther from .5.

        """
        random = np.random.default_rng(self.config.seed)
        sample = self.training[random.permutation(len(self.training))[:_SHUFFLED]]
        half = len(sample) // 2
        if half < 2:
            return []
        learn, held_out = (
            shuffled(part, random) for part in (sample[:half], sample[half : 2 * half])
        )
        batches = [learn[random.permutation(half)[:256]] for _ in range(_SHUFFLED_STEPS)]
        towers, _ = self._learn(batches, "towers, shuffled items")
        auc = paired_auc(towers, held_out)
        tolerance = chance_tolerance(half)
        check_chance("towers", auc, tolerance)
        return [auc, tolerance]

    def _learn(self, batches: list[Examples], name: str) -> tuple[TwoTowers, list[float]]:
        torch.manual_seed(self.config.seed)
        towers = self.build().to(self.popularity.device)
        towers.users.id_dropout = towers.items.id_dropout = 0.0
        optimizer = torch.optim.AdamW(towers.parameters(), lr=_RATE)
        generator = np.random.default_rng(self.config.seed)
        step = TrainingStep(
            popularity=self.popularity,
            uniform_negatives=self.config.uniform_negatives,
            clip=self.config.clip,
            guard=Guard(name),
        )
        return towers, [step(towers, optimizer, batch, generator)[0] for batch in batches]


def shuffled(examples: Examples, random: np.random.Generator) -> Examples:
    """Return the examples with their items shuffled among them."""
    return replace(examples, item=random.permutation(examples.item))


@torch.no_grad()
def paired_auc(towers: TwoTowers, examples: Examples) -> float:
    """Return the share of pairs in which a user's own item scores above another example's.

    Ties count half; NaN if a score is NaN.
    """
    towers.eval()
    raw = towers.raw_items()
    items = F.normalize(raw, dim=-1, eps=1e-6)[
        torch.from_numpy(examples.item.astype(np.int64)).to(raw.device)
    ]
    history = torch.from_numpy(examples.context.history.astype(np.int64)).to(raw.device)
    return own_first(towers.users(*user_inputs(examples.context, raw, history).tensors()), items)


def own_first(users: Tensor, items: Tensor) -> float:
    """Return the share of pairs in which a user scores its own item above another's.

    Ties count half; NaN if a score is NaN.

    Args:
        users: ``[n, D]``.
        items: ``[n, D]``, each user's own item.

    """
    scores = (users @ items.T).double()
    own = scores.diagonal().unsqueeze(1)
    wins = (own > scores).double() + 0.5 * (own == scores).double()
    wins[torch.isnan(own - scores)] = math.nan
    return float((wins.sum() - wins.diagonal().sum()).item() / (len(users) * (len(users) - 1)))


def chance_tolerance(n: int) -> float:
    """Return four standard errors of ``own_first`` over ``n`` users with shuffled items.

    Its variance is at most ``1 / (12 (n - 1))`` (of a sum over a random permutation, Hoeffding
    1951).
    """
    return _STANDARD_ERRORS * math.sqrt(1 / (12 * (n - 1)))
