"""Baselines that learn from who interacted with what: item kNN, EASE and iALS.

Each is fitted once on a binary matrix of users and items, and scores whatever history it is given:
at a request's time, the items that the user interacted with before it.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.linalg import lapack
from threadpoolctl import threadpool_limits

from feature_repo.arrays import Float32Array
from feature_repo.threads import inference_threads

Matrix: TypeAlias = sparse.csr_matrix

LARGEST_EASE = 20_000
"""Items above which EASE, whose matrix has a number for each pair, is left out: 3.2 GB then."""

_BLOCK_ENTRIES = 20_000_000


class Baseline(Protocol):
    """A fitted model."""

    def scores(self, histories: Matrix) -> Float32Array:
        """Return scores of all items, float32 ``[B, N]``.

        Args:
            histories: float32 ``[B, N]`` sparse, 1 where the user interacted with the item.

        """


class ItemKnn:
    """Item kNN: shrunk cosine of the users of two items (Deshpande and Karypis, TOIS 2004)."""

    def __init__(self, interactions: Matrix, neighbours: int, shrinkage: float) -> None:
        """Fit.

        Args:
            interactions: float32 ``[users, N]`` sparse, 1 where a user interacted with an item.
            neighbours: how many of the most similar items each keeps.
            shrinkage: added to the geometric mean of both items' counts.

        """
        counts = np.asarray(interactions.sum(axis=0)).ravel()
        by_item = interactions.T.tocsr()

        # Blocks of items of bounded size: the users' histories bound the pairs that a block gives.
        pairs = by_item @ np.asarray(interactions.sum(axis=1)).ravel()
        blocks = np.flatnonzero(np.diff(np.cumsum(pairs) // _BLOCK_ENTRIES, prepend=-1.0))
        edges = [*blocks.tolist(), len(counts)]

        # The nearest items of each block's items, as rows, columns and weights of one matrix.
        parts = []
        for start, stop in zip(edges[:-1], edges[1:], strict=True):
            row, column, count = _pairs((by_item[start:stop] @ interactions).tocoo(), start)
            mean = np.sqrt(counts[row] * counts[column])
            weight = (count / (mean + shrinkage)).astype(np.float32)
            parts.append(_nearest(row, column, weight, neighbours))
        row, column, weight = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        self.similarity = sparse.csr_matrix(
            (weight, (row, column)), shape=(len(counts), len(counts))
        )

    def scores(self, histories: Matrix) -> Float32Array:
        """Return the sum of similarities to the history's items."""
        return np.asarray((histories @ self.similarity).toarray())


def _pairs(shared: Any, start: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    """Return two different items and the number of users they share, for each such pair.

    ``shared`` is a sparse block of counts whose first row is item ``start``.
    """
    different = shared.row + start != shared.col
    return shared.row[different] + start, shared.col[different], shared.data[different]


def _nearest(
    row: npt.NDArray[Any], column: npt.NDArray[Any], weight: Float32Array, neighbours: int
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], Float32Array]:
    """Return the entries with the largest weights of each row, ties by column."""
    order = np.lexsort((column, -weight, row))
    row = row[order]
    rank = np.arange(len(row)) - np.searchsorted(row, row)
    nearest = rank < neighbours
    return row[nearest], column[order][nearest], weight[order][nearest]


class Ease:
    """EASE: a linear model of each item by all others, in closed form (Steck, WWW 2019).

    With ``P = (X'X + l2 I)^-1`` the weights are ``B = I - P diag(1 / diag(P))``, its diagonal 0.
    """

    def __init__(self, interactions: Matrix, l2: float) -> None:
        """Fit on ``interactions`` float32 ``[users, N]`` sparse; memory is 12 N^2 bytes.

        Raises:
            ValueError: ``l2`` is too small for the matrix to be inverted.

        """
        # P, [N, N], by Cholesky; in place, since it would not fit in memory twice.
        gram = np.asfortranarray((interactions.T @ interactions).toarray(), dtype=np.float64)
        gram[np.diag_indices_from(gram)] += l2
        gram, failed = lapack.dpotrf(gram, lower=True, overwrite_a=True, clean=True)
        if not failed:
            gram, failed = lapack.dpotri(gram, lower=True, overwrite_c=True)
        if failed:
            raise ValueError(f"EASE: X'X + {l2} I cannot be inverted; use a larger l2")

        # LAPACK fills the lower triangle only.
        diagonal = np.diag(gram).copy()
        weights = np.empty(gram.shape, dtype=np.float32)
        for column in range(len(gram)):
            weights[column:, column] = weights[column, column:] = gram[column:, column]
        weights /= -diagonal
        np.fill_diagonal(weights, 0.0)
        self.weights = weights

    def scores(self, histories: Matrix) -> Float32Array:
        """Return the sum of the weights of the history's items."""
        return np.asarray(histories @ self.weights)


class Ials:
    """iALS (Hu, Koren and Volinsky, ICDM 2008) by ``implicit``; histories are folded in exactly."""

    def __init__(
        self,
        interactions: Matrix,
        *,
        factors: int,
        alpha: float,
        regularization: float,
        iterations: int = 15,
    ) -> None:
        """Fit on ``interactions`` float32 ``[users, N]`` sparse.

        Raises:
            ImportError: ``implicit`` is not installed.

        """
        from implicit.cpu.als import AlternatingLeastSquares

        # The library's own threads share the work; BLAS's would only wait for them.
        with threadpool_limits(1, "blas"):
            self._model = AlternatingLeastSquares(
                factors=factors,
                alpha=alpha,
                regularization=regularization,
                iterations=iterations,
                num_threads=inference_threads(),
                random_state=0,
            )
            self._model.fit(interactions, show_progress=False)

    def scores(self, histories: Matrix) -> Float32Array:
        """Return the product of the items' factors with those of users who have these histories."""
        users = self._model.recalculate_user(np.arange(histories.shape[0]), histories)
        return np.asarray(users @ self._model.item_factors.T, dtype=np.float32)


class WithPopularity:
    """A baseline whose ties, such as all items for an empty history, are broken by popularity."""

    def __init__(self, baseline: Baseline, interactions: Matrix) -> None:
        self._baseline = baseline
        self._bonus = popularity_bonus(interactions)

    def scores(self, histories: Matrix) -> Float32Array:
        """Return the baseline's scores, raised by at most 1e-6."""
        return np.asarray(self._baseline.scores(histories) + self._bonus)


def popularity_bonus(interactions: Matrix) -> Float32Array:
    """Return a bonus of at most 1e-6 that breaks ties by popularity, float32 ``[N]``."""
    counts = np.asarray(interactions.sum(axis=0)).ravel()
    return np.asarray(1e-6 * counts / max(float(counts.max()), 1.0), dtype=np.float32)
