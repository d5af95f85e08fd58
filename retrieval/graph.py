"""The graph of users and items: its normalised matrix, smoothing over it, and its closed-form factors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor


class Product(torch.autograd.Function):
    """``matrix @ dense`` whose gradient is ``transposed @ gradient``: torch would transpose at each step."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, transposed: Tensor, dense: Tensor) -> Tensor:
        """Multiply, and keep the transposed matrix for the way back."""
        ctx.save_for_backward(transposed)
        return matrix @ dense

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Return the gradient for the dense factor only."""
        return None, None, ctx.saved_tensors[0] @ gradients[0]


class Pool:
    """A sparse matrix ``[n, m]`` on a device, ready to multiply dense ``[m, D]`` with gradients."""

    def __init__(self, matrix: sparse.csr_matrix, device: torch.device) -> None:
        self.matrix, self.transposed = _tensor(matrix, device), _tensor(matrix.T.tocsr(), device)

    def __call__(self, dense: Tensor) -> Tensor:
        """Return ``matrix @ dense``, float32 ``[n, D]``."""
        return Product.apply(self.matrix, self.transposed, dense)

    def back(self, dense: Tensor) -> Tensor:
        """Return ``matrix.T @ dense``, float32 ``[m, D]``."""
        return Product.apply(self.transposed, self.matrix, dense)


def normalised(interactions: sparse.csr_matrix) -> sparse.csr_matrix:
    """Return D_u^-1/2 X D_i^-1/2, float32; rows and columns without an entry stay zero."""
    users, items = degrees(interactions)
    scaled = sparse.diags(users**-0.5) @ interactions @ sparse.diags(items**-0.5)
    return sparse.csr_matrix(scaled, dtype=np.float32)


def degrees(interactions: sparse.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """Return how many interactions each user and each item has, 1 where it has none."""
    return tuple(np.maximum(np.asarray(interactions.sum(axis=axis)).ravel(), 1) for axis in (1, 0))  # type: ignore[return-value]


def smooth(pool: Pool, users: Tensor, items: Tensor, layers: int) -> tuple[Tensor, Tensor]:
    """Return the mean of a vector and its neighbourhoods up to ``layers`` steps away (LightGCN, He et al., 2020)."""
    total_users, total_items = users, items
    for _ in range(layers):
        users, items = pool(items), pool.back(users)
        total_users, total_items = total_users + users, total_items + items
    return total_users / (layers + 1), total_items / (layers + 1)


@torch.no_grad()
def spectral(pool: Pool, dimension: int, seed: int, rounds: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Return the largest singular vectors and values: users ``[users, D]``, values ``[D]``, items ``[items, D]``.

    Randomised subspace iteration (Halko, Martinsson and Tropp, 2011). What the matrix has no rank for is zero.
    """
    users, items = pool.matrix.shape
    rank = min(dimension + 16, users, items)
    start = torch.randn(items, rank, generator=torch.Generator().manual_seed(seed)).to(pool.matrix.device)
    for _ in range(rounds):
        start, _ = torch.linalg.qr(pool.back(pool(start)))
    left, values, right = torch.linalg.svd(pool(start), full_matrices=False)
    kept = min(dimension, rank)
    missing = (0, dimension - kept)
    pad = torch.nn.functional.pad
    return (
        pad(left[:, :kept], missing).contiguous(),
        pad(values[:kept], missing),
        pad((start @ right.T)[:, :kept], missing).contiguous(),
    )


def _tensor(matrix: sparse.csr_matrix, device: torch.device) -> Tensor:
    parts = (torch.from_numpy(part) for part in (matrix.indptr, matrix.indices, matrix.data.astype(np.float32)))
    return torch.sparse_csr_tensor(*parts, size=matrix.shape, check_invariants=False).to(device)
