"""Baselines that learn from who took up what: item kNN, EASE and iALS.

Each is fitted once on a binary matrix of users and items, and scores whatever history it is given:
at a request's time that is all that the user took up before it.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.linalg import lapack
from threadpoolctl import threadpool_limits

from feature_repo.encoding import Floats
from feature_repo.threads import inference_threads

Matrix: TypeAlias = sparse.csr_matrix

LARGEST_EASE = 20_000
"""Items above which EASE, whose matrix has a number for each pair, is left out: 3.2 GB then."""

_BLOCK_ENTRIES = 20_000_000


class Baseline(Protocol):
    """A fitted model."""

    def scores(self, histories: Matrix) -> Floats:
        """Return scores of all items, float32 ``[B, N]``, from histories float32 ``[B, N]`` sparse."""


class ItemKnn:
    """Item kNN: cosine of who took both up, shrunk where few did (Deshpande and Karypis, TOIS 2004)."""

    def __init__(self, taken: Matrix, neighbours: int, shrinkage: float) -> None:
        """Fit.

        Args:
            taken: float32 ``[users, N]`` sparse, 1 where a user took an item up.
            neighbours: how many of the most similar items each keeps.
            shrinkage: added to the geometric mean of both items' counts.

        """
        counts = np.asarray(taken.sum(axis=0)).ravel()
        by_item = taken.T.tocsr()
        # How many pairs a block of items can give is bounded by its users' histories.
        pairs = by_item @ np.asarray(taken.sum(axis=1)).ravel()
        blocks = np.flatnonzero(np.diff(np.cumsum(pairs) // _BLOCK_ENTRIES, prepend=-1.0))
        edges = [*blocks.tolist(), len(counts)]
        parts = [
            _nearest((by_item[start:stop] @ taken).tocoo(), start, counts, neighbours, shrinkage)
            for start, stop in zip(edges[:-1], edges[1:], strict=True)
        ]
        row, column, weight = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        self.similarity = sparse.csr_matrix(
            (weight, (row, column)), shape=(len(counts), len(counts))
        )

    def scores(self, histories: Matrix) -> Floats:
        """Return the sum of similarities to the history's items."""
        return np.asarray((histories @ self.similarity).toarray())


def _nearest(
    together: Any, start: int, counts: Floats, neighbours: int, shrinkage: float
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], Floats]:
    """Return rows, columns and similarities of the nearest items of a block's rows, ties by code."""
    apart = together.row + start != together.col
    row, column, count = together.row[apart] + start, together.col[apart], together.data[apart]
    weight = (count / (np.sqrt(counts[row] * counts[column]) + shrinkage)).astype(np.float32)
    order = np.lexsort((column, -weight, row))
    row, column, weight = row[order], column[order], weight[order]
    place = np.arange(len(row)) - np.searchsorted(row, row)
    kept = place < neighbours
    return row[kept], column[kept], weight[kept]


class Ease:
    """EASE: a linear model of each item by all others, in closed form (Steck, WWW 2019).

    With ``P = (X'X + l2 I)^-1`` the weights are ``B = I - P diag(1 / diag(P))``, its diagonal 0.
    """

    def __init__(self, taken: Matrix, l2: float) -> None:
        """Fit on ``taken`` float32 ``[users, N]`` sparse; memory is 12 N^2 bytes.

        Raises:
            ValueError: ``l2`` is too small for the matrix to be inverted.

        """
        gram = np.asfortranarray((taken.T @ taken).toarray(), dtype=np.float64)
        gram[np.diag_indices_from(gram)] += l2
        # Both in place: a catalogue of 20,000 items would not fit in memory twice.
        gram, failed = lapack.dpotrf(gram, lower=True, overwrite_a=True, clean=True)
        if not failed:
            gram, failed = lapack.dpotri(gram, lower=True, overwrite_c=True)
        if failed:
            raise ValueError(f"EASE: X'X + {l2} I cannot be inverted")
        diagonal = np.diag(gram).copy()
        weights = np.empty(gram.shape, dtype=np.float32)
        for column in range(len(gram)):  # the lower triangle is all that LAPACK fills
            weights[column:, column] = weights[column, column:] = gram[column:, column]
        weights /= -diagonal
        np.fill_diagonal(weights, 0.0)
        self.weights = weights

    def scores(self, histories: Matrix) -> Floats:
        """Return the sum of the weights of the history's items."""
        return np.asarray(histories @ self.weights)


class Ials:
    """iALS (Hu, Koren and Volinsky, ICDM 2008) of the library ``implicit``; a history is folded in exactly."""

    def __init__(
        self, taken: Matrix, factors: int, alpha: float, regularization: float, iterations: int = 15
    ) -> None:
        """Fit on ``taken`` float32 ``[users, N]`` sparse.

        Raises:
            ImportError: ``implicit`` is not installed.

        """
        from implicit.cpu.als import AlternatingLeastSquares

        # The library's own threads share the work; BLAS's beside them would only wait.
        with threadpool_limits(1, "blas"):
            self._model = AlternatingLeastSquares(
                factors=factors,
                alpha=alpha,
                regularization=regularization,
                iterations=iterations,
                num_threads=inference_threads(),
                random_state=0,
            )
            self._model.fit(taken, show_progress=False)

    def scores(self, histories: Matrix) -> Floats:
        """Return the product of the items' factors with those of users who have these histories."""
        users = self._model.recalculate_user(np.arange(histories.shape[0]), histories)
        return np.asarray(users @ self._model.item_factors.T, dtype=np.float32)


class WithPopularity:
    """A baseline whose ties, all items for a user without history among them, go by popularity."""

    def __init__(self, baseline: Baseline, taken: Matrix) -> None:
        self._baseline, self._bonus = baseline, popularity_bonus(taken)

    def scores(self, histories: Matrix) -> Floats:
        """Return the baseline's scores, raised by at most 1e-6."""
        return np.asarray(self._baseline.scores(histories) + self._bonus)


def popularity_bonus(taken: Matrix) -> Floats:
    """Return what orders items by popularity where a model does not tell them apart, float32 ``[N]``, at most 1e-6."""
    counts = np.asarray(taken.sum(axis=0)).ravel()
    return np.asarray(1e-6 * counts / max(float(counts.max()), 1.0), dtype=np.float32)
