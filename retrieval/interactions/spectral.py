"""Sparse products with gradients, and the closed-form factors of an interaction matrix."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import sparse
from torch import Tensor

from feature_repo.arrays import Float64Array


class _Product(torch.autograd.Function):
    """``matrix @ dense`` with the transposed matrix at hand.

    Torch would transpose at every step.
    """

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, transposed: Tensor, dense: Tensor) -> Tensor:
        ctx.save_for_backward(transposed)
        return matrix @ dense

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return None, None, ctx.saved_tensors[0] @ gradients[0]


class SparseProduct:
    """A sparse matrix ``[n, m]`` on a device.

    It multiplies dense float32 ``[m, D]`` and has gradients.
    """

    def __init__(self, matrix: sparse.csr_matrix, device: torch.device) -> None:
        self._matrix, self._transposed = _tensor(matrix, device), _tensor(matrix.T.tocsr(), device)
        self.shape, self.device = matrix.shape, device

    def __call__(self, dense: Tensor) -> Tensor:
        """Return ``matrix @ dense``, ``[n, D]``."""
        product: Tensor = _Product.apply(self._matrix, self._transposed, dense)  # type: ignore[no-untyped-call]
        return product

    def transposed(self, dense: Tensor) -> Tensor:
        """Return ``matrix.T @ dense``, ``[m, D]``."""
        product: Tensor = _Product.apply(self._transposed, self._matrix, dense)  # type: ignore[no-untyped-call]
        return product


def degrees(
    interactions: sparse.csr_matrix,
) -> tuple[Float64Array, Float64Array]:
    """Return how many interactions each user and each item has.

    1 where there is none, to divide by.
    """
    users, items = (
        np.asarray(interactions.sum(axis=axis), dtype=np.float64).ravel() for axis in (1, 0)
    )
    return np.maximum(users, 1), np.maximum(items, 1)


def normalised(interactions: sparse.csr_matrix) -> sparse.csr_matrix:
    """Return ``D_u^-1/2 X D_i^-1/2``, the graph's adjacency between users and items."""
    users, items = degrees(interactions)
    return sparse.csr_matrix(sparse.diags(users**-0.5) @ interactions @ sparse.diags(items**-0.5))


@torch.no_grad()
def right_factors(product: SparseProduct, dimension: int, seed: int, rounds: int = 5) -> Tensor:
    """Return the right singular vectors of the largest singular values, float32 ``[m, dimension]``.

    The method is randomised subspace iteration (Halko, Martinsson and Tropp, SIAM Review 2011).
    Columns beyond the size of the matrix are zero.
    """
    rank = min(dimension + 16, *product.shape)
    basis = torch.randn(product.shape[1], rank, generator=torch.Generator().manual_seed(seed)).to(
        product.device
    )
    for _ in range(rounds):
        basis, _ = torch.linalg.qr(product.transposed(product(basis)))
    # The eigenvectors of the small matrix turn the basis into singular vectors, the largest last.
    projected = product(basis)
    _, turn = torch.linalg.eigh(projected.T @ projected)
    columns = min(dimension, rank)
    return F.pad((basis @ turn.flip(1))[:, :columns], (0, dimension - columns)).contiguous()


def _tensor(matrix: sparse.csr_matrix, device: torch.device) -> Tensor:
    rows, columns = torch.from_numpy(matrix.indptr), torch.from_numpy(matrix.indices)
    values = torch.from_numpy(matrix.data.astype(np.float32))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(
            rows, columns, values, size=matrix.shape, device=device, check_invariants=False
        )
