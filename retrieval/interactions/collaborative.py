"""Two towers that know who took what and nothing else.

One dot product, so FAISS can find the items.

A user is the direction of the sum of the items it took and of a vector of its own, an item a
direction; the last coordinate of an item's vector is its popularity. A dot product is then

    cos(user, item) / temperature + popularity * log(interactions of the item)

Training begins at the singular vectors of the degree-normalised interactions, which are already
good, and goes on with a softmax over items drawn uniformly (Wu et al., "On the Effectiveness of
Sampled Softmax Loss for Item Recommendation", TOIS 2024), all items of a user at once. Where it is
known in what order
a user took them, the newer ones weigh more in the finished user: people go on with what they do
    now.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import sparse
from torch import Tensor

from feature_repo.arrays import Int64Array
from feature_repo.sanity import Guard
from retrieval.interactions.spectral import SparseProduct, degrees, normalised, right_factors


@dataclass(frozen=True)
class CollaborativeConfig:
    """How the vectors are made: ``dimension`` coordinates, popularity's included.

    Training explains what is taken with the full ``popularity``; finished vectors have the share
    ``kept``. A user's n-th item from the newest weighs n to the power -``recency`` in the finished
    user, and 1 in training. ``activity`` is the power of a user's number of items in its weight.
    The vectors are the mean of the embeddings over about the last ``averaged`` of the epochs.
    """

    dimension: int = 256
    temperature: float = 0.1
    popularity: float = 1.0
    kept: float = 1.0
    recency: float = 0.0
    learning_rate: float = 2e-3
    users_per_step: int = 4_096
    least_steps: int = 8
    negatives: int = 4_096
    activity: float = 0.5
    averaged: float = 0.33
    seed: int = 0


class _LogPartition(torch.autograd.Function):
    """log sum exp over the rows of ``left @ right.T``, in bfloat16 where it is fast.

    Keeps shares, not logits.
    """

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor) -> Tensor:
        half = left.is_cuda or torch.ops.mkldnn._is_mkldnn_bf16_supported()
        left, right = (
            factor.to(torch.bfloat16 if half else torch.float32) for factor in (left, right)
        )
        logits = left @ right.T
        shares = logits.softmax(dim=1)
        ctx.save_for_backward(left, right, shares)
        likeliest = logits.max(dim=1, keepdim=True)
        return (
            likeliest.values.float() - shares.gather(1, likeliest.indices).float().log()
        ).squeeze(1)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        left, right, shares = ctx.saved_tensors
        weight = gradients[0].unsqueeze(1)
        return (shares @ right).float() * weight, (
            shares.T @ (left * weight.to(left.dtype))
        ).float()


class CollaborativeTowers:
    """Embeddings of the users and items of one interaction matrix, and their training."""

    def __init__(
        self,
        interactions: sparse.csr_matrix,
        config: CollaborativeConfig,
        start: Tensor,
        places: sparse.csr_matrix | None = None,
    ) -> None:
        """Begin at ``start``, the ``item_factors`` of the 0/1 ``interactions``.

        Its device is the model's.

        ``places``: each item's place from the newest of its user, where known; see ``by_recency``.
        """
        self.config, self.device, self.epoch, self._taken = config, start.device, 0, interactions
        self._places = places
        # Embeddings are directions: the shorter one is, the larger its gradient, and Adam steps
        # alike for all.
        self._guard = Guard("collaborative towers", exploded=math.inf)
        _, popularity = degrees(interactions)
        taken = torch.from_numpy(popularity).float().to(self.device).unsqueeze(1)
        self._prior = config.popularity * taken.log()
        items = start[:, : config.dimension - 1] / taken.sqrt()
        items = items / items.norm(dim=1).mean()
        users = torch.zeros(interactions.shape[0], items.shape[1], device=self.device)
        self._tables = [items.requires_grad_(), users.requires_grad_()]
        self._means = [table.detach().clone() for table in self._tables]
        self._optimizer = torch.optim.Adam(
            self._tables, lr=config.learning_rate, betas=(0.9, 0.98), eps=1e-12, fused=True
        )

    def train_epoch(self) -> Iterator[float]:
        """Take every user once, in an order of the seed and the epoch.

        Yields the loss of each step.

        Raises:
            CannotLearn: a loss or gradient was not finite.

        """
        config, count = self.config, self._taken.shape[0]
        generator = np.random.default_rng([config.seed, self.epoch])
        order = generator.permutation(count)
        size = min(config.users_per_step, -(-count // config.least_steps))
        for start in range(0, count, size):
            negatives = generator.permutation(self._taken.shape[1])[: config.negatives]
            loss = self._loss(np.sort(order[start : start + size]), np.sort(negatives))
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            loss_value = float(loss.detach())
            self._guard(
                loss_value,
                float(torch.nn.utils.get_total_norm([table.grad for table in self._tables])),
            )
            self._optimizer.step()
            yield loss_value
        self.epoch += 1
        for mean, table in zip(self._means, self._tables, strict=True):
            mean.lerp_(table.detach(), 1 / (1 + self.epoch * config.averaged))

    @torch.no_grad()
    def vectors(self, config: CollaborativeConfig | None = None) -> tuple[Tensor, Tensor]:
        """Return the vectors of users and items, float32 ``[users, D]`` and ``[items, D]``.

        They come from the running means of the weights. The ``recency`` and ``kept`` of ``config``
        replace the model's own.
        """
        config = config or self.config
        items, users = self._means
        taken = self._taken
        if self._places is not None and config.recency:
            taken = by_recency(taken, self._places, config.recency)
        return self._users(taken, items, users), _with_popularity(self._items(items), config.kept)

    def _loss(self, batch: Int64Array, negatives: Int64Array) -> Tensor:
        items, users = self._tables
        taken = self._taken[batch]
        number = np.diff(taken.indptr)
        left = self._users(taken, items, users.index_select(0, self._codes(batch)))
        right = self._items(items)
        own = SparseProduct(
            sparse.csr_matrix(sparse.diags(1 / np.maximum(number, 1)) @ taken), self.device
        )
        partition: Tensor = _LogPartition.apply(left, right.index_select(0, self._codes(negatives)))  # type: ignore[no-untyped-call]
        losses = partition - (left * own(right)).sum(1)
        weights = (
            torch.from_numpy(np.where(number, number**self.config.activity, 0))
            .float()
            .to(self.device)
        )
        return (losses * weights).sum() / weights.sum().clamp(min=1)

    def _users(self, taken: sparse.csr_matrix, items: Tensor, own: Tensor) -> Tensor:
        pooled = SparseProduct(taken, self.device)(items)
        return F.pad(
            F.normalize(pooled + own, eps=1e-9) / self.config.temperature, (0, 1), value=1.0
        )

    def _items(self, items: Tensor) -> Tensor:
        return torch.cat([F.normalize(items, eps=1e-9), self._prior], dim=1)

    def _codes(self, codes: Int64Array) -> Tensor:
        return torch.from_numpy(codes).to(self.device)


def _with_popularity(items: Tensor, kept: float) -> Tensor:
    """Return item vectors with ``kept`` times the popularity that these have."""
    return torch.cat([items[:, :-1], kept * items[:, -1:]], dim=1)


def by_recency(
    taken: sparse.csr_matrix, places: sparse.csr_matrix, power: float
) -> sparse.csr_matrix:
    """Weigh what each user took by place from the newest, to the power -``power``.

    A row's weights sum to its items.

    Args:
        taken: 0/1 CSR ``[users, items]``.
        places: CSR ``[users, items]``, numbers from 1 that grow towards the oldest; only those of
            ``taken`` count, the least of a row as 1. An item without a place has its user's mean
            weight, 1.
        power: 0 weighs all alike.

    """
    weights = taken.multiply(places).tocsr()
    count = np.diff(weights.indptr)
    rows, row = np.flatnonzero(count), np.repeat(np.arange(len(count)), count)
    newest, mean = np.ones(len(count)), np.ones(len(count))
    newest[rows] = np.minimum.reduceat(weights.data, weights.indptr[rows]) if len(rows) else 1
    values = (weights.data - newest[row] + 1) ** -power
    mean[rows] = np.bincount(row, values, minlength=len(count))[rows] / count[rows]
    weights.data = (values / mean[row] - 1).astype(np.float32)
    return sparse.csr_matrix(taken + weights)


def item_factors(interactions: sparse.csr_matrix, dimension: int, device: torch.device) -> Tensor:
    """Return the items' singular vectors, float32 ``[items, dimension]``.

    They are those of the degree-normalised interactions.
    """
    return right_factors(SparseProduct(normalised(interactions), device), dimension, seed=0)


def spectral_vectors(interactions: sparse.csr_matrix, factors: Tensor) -> tuple[Tensor, Tensor]:
    """Return untrained vectors of users and items.

    A user's vector is the projection of the user's interactions on ``factors``.
    """
    scale = (
        torch.from_numpy(degrees(interactions)[1] ** 0.5).float().to(factors.device).unsqueeze(1)
    )
    return SparseProduct(interactions, factors.device)(factors / scale), factors * scale
