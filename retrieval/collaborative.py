"""Two towers that know ids and who took what: embeddings smoothed over the graph, one dot product.

A user's vector is the mean of its own embedding and of its neighbourhoods in the graph of interactions,
an item's likewise (LightGCN: He et al., SIGIR 2020). They are trained with a softmax over all items,
estimated with negatives drawn uniformly (Wu et al., "On the Effectiveness of Sampled Softmax Loss for
Item Recommendation", TOIS 2024), all of a user's items at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import sparse
from torch import Tensor

from retrieval.graph import Pool, degrees, normalised, smooth, spectral


@dataclass(frozen=True)
class CollaborativeConfig:
    """How the vectors are made. ``activity`` is the power of a user's number of items in its weight."""

    dimension: int = 256
    layers: int = 2
    temperature: float = 0.15
    learning_rate: float = 5e-3
    users_per_step: int = 8_192
    negatives: int = 4_096
    activity: float = 0.5
    averaging: float = 0.9
    seed: int = 0


class LogPartition(torch.autograd.Function):
    """log sum exp of ``left @ right.T`` over its rows; keeps the probabilities alone, in bfloat16."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor) -> Tensor:
        """Take float32 ``[B, D]`` and ``[N, D]``, return float32 ``[B]``."""
        left, right = left.bfloat16(), right.bfloat16()
        logits = left @ right.T
        shares = logits.softmax(dim=1)
        ctx.save_for_backward(left, right, shares)
        return logits[:, 0].float() - shares[:, 0].float().log()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Return the gradients of both factors."""
        left, right, shares = ctx.saved_tensors
        weight = gradients[0].unsqueeze(1)
        return (shares @ right).float() * weight, (shares.T @ (left * weight.bfloat16())).float()


class Collaborative:
    """Embeddings of users and items and their training on one interaction matrix."""

    def __init__(self, interactions: sparse.csr_matrix, config: CollaborativeConfig, device: torch.device) -> None:
        self.interactions, self.config, self.device = interactions, config, device
        self.pool = Pool(normalised(interactions), device)
        users, values, items = spectral(self.pool, config.dimension, config.seed)
        root = values.sqrt()
        self.tables = [_start(table * root).requires_grad_() for table in (users, items)]
        self.averages = [table.detach().clone() for table in self.tables]
        self.optimizer = torch.optim.Adam(
            self.tables, lr=config.learning_rate, betas=(0.9, 0.98), eps=1e-10, fused=True
        )
        self.epoch = 0

    def steps(self) -> Iterator[float]:
        """Train for one epoch, every user once; yields the loss of each step."""
        config, generator = self.config, np.random.default_rng([self.config.seed, self.epoch])
        order = generator.permutation(self.interactions.shape[0])
        items = self.interactions.shape[1]
        for start in range(0, len(order), config.users_per_step):
            negatives = generator.permutation(items)[: config.negatives]
            loss = self._loss(np.sort(order[start : start + config.users_per_step]), negatives)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            yield float(loss.detach())
        self.epoch += 1
        for average, table in zip(self.averages, self.tables, strict=True):
            average.lerp_(table.detach(), 1 - config.averaging)

    def _loss(self, batch: np.ndarray, negatives: np.ndarray) -> Tensor:
        users, items = (F.normalize(table) for table in smooth(self.pool, *self.tables, self.config.layers))
        taken = self.interactions[batch]
        count, _ = degrees(taken)
        own = Pool(sparse.diags(1 / count) @ taken, self.device)
        weight = torch.from_numpy(np.diff(taken.indptr) ** self.config.activity).float().to(self.device)
        left = users[torch.from_numpy(batch).to(self.device)] / self.config.temperature
        partition = LogPartition.apply(left, items[torch.from_numpy(negatives).to(self.device)])
        return (weight * (partition - (left * own(items)).sum(1))).sum() / weight.sum()

    @torch.no_grad()
    def vectors(self) -> tuple[Tensor, Tensor]:
        """Return unit vectors, float32 ``[users, D]`` and ``[items, D]``, of the averaged embeddings."""
        users, items = smooth(self.pool, *self.averages, self.config.layers)
        return F.normalize(users), F.normalize(items)


def _start(table: Tensor, scale: float = 0.1) -> Tensor:
    """Scale so that rows have a norm of ``scale`` on average: what one step of Adam is measured by."""
    return table * (scale * len(table) ** 0.5 / table.norm())
