"""Softmax over the whole catalogue, or over a sample of a large one, with its gradient worked out as it goes.

The logits of a batch would be hundreds of megabytes; they are made and used up in chunks that stay
in the cache.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_CHUNK = 2_048
_NEVER = -1e9


class SoftmaxLoss:
    """Cross-entropy of the next item: exact up to ``exact`` items, else over in-batch and uniform negatives.

    Sampled logits have the log of the probability that the item is in the sample subtracted, but
    for each example's own item, whose inclusion is certain (Khrylchenko et al., "Correcting the
    LogQ correction", RecSys 2025).
    """

    def __init__(
        self, counts: Tensor, generator: torch.Generator, exact: int, sampled: int
    ) -> None:
        """Take how often each code is a target, ``[catalogue + 1]``; code 0 is no item."""
        self._share = counts.double() / counts.sum()
        self._generator, self._sampled = generator, sampled
        self.exact = len(counts) - 1 <= exact

    def __call__(self, vectors: Tensor, table: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of users ``[n, D]`` whose next items are ``targets``, int64 ``[n]``."""
        if self.exact:
            correction = torch.full((len(table),), _NEVER, device=table.device)
            correction[1 : len(self._share)] = 0.0
            return _sum(vectors, table, targets, correction) / len(targets)
        catalogue = len(self._share) - 1
        shape = (self._sampled,)
        drawn = torch.randint(
            1, catalogue + 1, shape, generator=self._generator, device=table.device
        )
        rows, places = torch.unique(torch.cat([targets, drawn]), return_inverse=True)
        included = -torch.expm1(-(len(targets) * self._share[rows] + self._sampled / catalogue))
        filled = -len(rows) % 64
        rows = torch.cat([rows, rows.new_zeros(filled)])
        correction = torch.cat([-included.log(), included.new_full((filled,), _NEVER)]).to(
            table.dtype
        )
        return _sum(vectors, table[rows], places[: len(targets)], correction) / len(targets)


def _sum(vectors: Tensor, table: Tensor, targets: Tensor, correction: Tensor) -> Tensor:
    total: Tensor = _ChunkedSoftmax.apply(vectors, table, targets, correction)  # type: ignore[no-untyped-call]
    return total


class _ChunkedSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, vectors: Tensor, table: Tensor, targets: Tensor, correction: Tensor
    ) -> Tensor:
        items, corrections = table.to(vectors.dtype), correction.to(vectors.dtype)
        own = correction[targets].to(vectors.dtype)
        by_vectors, by_table = torch.empty_like(vectors), torch.zeros_like(table)
        total = torch.zeros((), device=table.device)
        for start in range(0, len(vectors), _CHUNK):
            part = vectors[start : start + _CHUNK]
            right = targets[start : start + _CHUNK]
            places = torch.arange(len(right), device=right.device) * len(items) + right
            logits = torch.addmm(corrections, part, items.T)
            flat = logits.view(-1)
            flat[places] -= own[start : start + _CHUNK]
            share = logits.softmax(dim=-1)
            flat = share.view(-1)
            certain = flat[places]
            total -= certain.float().clamp_min(1e-9).log().sum()
            flat[places] = certain - 1
            by_vectors[start : start + _CHUNK] = share @ items
            by_table += share.T @ part
        ctx.save_for_backward(by_vectors, by_table)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        by_vectors, by_table = ctx.saved_tensors
        return by_vectors * gradients[0], by_table * gradients[0], None, None
