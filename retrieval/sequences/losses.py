"""Softmax over the whole catalogue, or over a sample of a large one.

The logits of a batch would take hundreds of megabytes: loss and gradient are computed together, in
chunks that stay in the cache.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_CHUNK = 2_048
_NEVER = -1e9


class SoftmaxLoss:
    """Cross-entropy of the next item, exact up to ``exact`` items, else sampled.

    The sample has in-batch and uniform negatives. Each sampled logit is corrected by the log of the
    probability that its item is in the sample, which is subtracted. An example's own item is not
    corrected, because its inclusion is certain (Khrylchenko et al., "Correcting the LogQ
    correction", RecSys 2025).
    """

    def __init__(
        self, counts: Tensor, generator: torch.Generator, exact: int, sampled: int
    ) -> None:
        """Take how often each code is a target, ``[catalogue + 1]``; code 0 is no item."""
        self._share = counts.double() / counts.sum()
        self._generator = generator
        self._sampled = sampled
        self.exact = len(counts) - 1 <= exact

    def __call__(self, vectors: Tensor, table: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of users whose next items are ``targets``, int64 ``[n]``.

        ``vectors`` are those of the users, ``[n, D]``.
        """
        if self.exact:
            correction = torch.full((len(table),), _NEVER, device=table.device)
            correction[1 : len(self._share)] = 0.0
            return _sum(vectors, table, targets, correction) / len(targets)

        # The batch's targets and uniform negatives, each once: codes of the sample's rows [S].
        catalogue = len(self._share) - 1
        shape = (self._sampled,)
        drawn = torch.randint(
            1, catalogue + 1, shape, generator=self._generator, device=table.device
        )
        rows, indices = torch.unique(torch.cat([targets, drawn]), return_inverse=True)

        # The log probability that a row is in the sample; [S], filled up to a multiple of 64.
        included = -torch.expm1(-(len(targets) * self._share[rows] + self._sampled / catalogue))
        filled = -len(rows) % 64
        rows = torch.cat([rows, rows.new_zeros(filled)])
        correction = torch.cat([-included.log(), included.new_full((filled,), _NEVER)]).to(
            table.dtype
        )
        return _sum(vectors, table[rows], indices[: len(targets)], correction) / len(targets)


def _sum(vectors: Tensor, table: Tensor, targets: Tensor, correction: Tensor) -> Tensor:
    total: Tensor = _ChunkedSoftmax.apply(vectors, table, targets, correction)  # type: ignore[no-untyped-call]
    return total


class _ChunkedSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917 - autograd calls it by position
        ctx: Any, vectors: Tensor, table: Tensor, targets: Tensor, correction: Tensor
    ) -> Tensor:
        """Return the summed loss of users ``[n, D]`` over ``table`` ``[S, D]``.

        Keep its gradient.
        """
        items = table.to(vectors.dtype)
        corrections = correction.to(vectors.dtype)
        own = correction[targets].to(vectors.dtype)
        by_vectors = torch.empty_like(vectors)
        by_table = torch.zeros_like(table)
        total = torch.zeros((), device=table.device)
        for start in range(0, len(vectors), _CHUNK):
            part = vectors[start : start + _CHUNK]
            right = targets[start : start + _CHUNK]
            own_logits = torch.arange(len(right), device=right.device) * len(items) + right

            # Logits [chunk, S]; the example's own item is in the sample for certain.
            logits = torch.addmm(corrections, part, items.T)
            flat = logits.view(-1)
            flat[own_logits] -= own[start : start + _CHUNK]

            # Probabilities; the gradient of the loss by logits is these, less 1 at the own item.
            share = logits.softmax(dim=-1)
            flat = share.view(-1)
            certain = flat[own_logits]
            total -= certain.float().clamp_min(1e-9).log().sum()
            flat[own_logits] = certain - 1
            by_vectors[start : start + _CHUNK] = share @ items
            by_table += share.T @ part
        ctx.save_for_backward(by_vectors, by_table)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        by_vectors, by_table = ctx.saved_tensors
        return by_vectors * gradients[0], by_table * gradients[0], None, None
