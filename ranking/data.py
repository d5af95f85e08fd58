"""Labelled rows of many requests, which rankers are trained and measured on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from feature_repo.arrays import BoolArray, Float32Array, Float64Array, Int32Array, Int64Array
from ranking.row_schema import RowSchema


@dataclass
class RankingData:
    """Rows of many requests with the events that followed.

    Attributes:
        numeric: float32 [n, F]; NaN means missing.
        categorical: int32 [n, C].
        labels: float32 [n, T], 0 or 1.
        request: int64 [n], ascending: rows of one request stand together.
        weight: float32 [n], how much a row counts in losses and as a gain; None: 1 each.
        user: int64 [n], any number for the user of each row's request; None: every request is of
            another user.

    """

    numeric: Float32Array
    categorical: Int32Array
    labels: Float32Array
    request: Int64Array
    weight: Float32Array | None = None
    user: Int64Array | None = None

    def __len__(self) -> int:
        return len(self.request)

    def check(self, schema: RowSchema) -> None:
        """Refuse data that a ranker cannot learn from.

        Raises:
            ValueError: no rows, shapes that disagree with the schema, labels other than 0 and 1,
                unsorted requests, or weights that are not above 0.

        """
        schema.check_rows(self.numeric, self.categorical)
        n = len(self)
        if n == 0 or len(self.numeric) != n or self.labels.shape != (n, len(schema.heads)):
            raise ValueError(
                f"{n} request ids for {len(self.numeric)} rows and labels {self.labels.shape}"
            )
        if not np.isin(self.labels, (0.0, 1.0)).all():
            raise ValueError("labels must be 0 or 1")
        if (np.diff(self.request) < 0).any():
            raise ValueError("rows must be sorted by request")
        weights = self.weights()
        if weights.shape != (n,) or not (np.isfinite(weights) & (weights > 0)).all():
            raise ValueError("weights must be finite and above 0, one for each row")

    def take(self, rows: npt.NDArray[np.intp]) -> RankingData:
        """Return a copy of some rows, int [m]; ascending rows keep requests together."""
        return RankingData(
            numeric=self.numeric[rows],
            categorical=self.categorical[rows],
            labels=self.labels[rows],
            request=self.request[rows],
            weight=None if self.weight is None else self.weight[rows],
            user=None if self.user is None else self.user[rows],
        )

    def weights(self) -> Float32Array:
        """Return how much each row counts, float32 [n]."""
        return np.ones(len(self), dtype=np.float32) if self.weight is None else self.weight

    def sample(self, limit: int) -> RankingData:
        """Return at most ``limit`` rows, evenly spaced, so that every period is present."""
        return self if len(self) <= limit else self.take(spaced_rows(len(self), limit))

    def balanced_rows(self, limit: int) -> npt.NDArray[np.intp]:
        """Return at most ``limit`` ascending, evenly spaced row numbers, half of them positive."""
        positive = self.positive()
        halves = [np.flatnonzero(positive), np.flatnonzero(~positive)]
        return np.sort(
            np.concatenate([half[spaced_rows(len(half), limit // 2)] for half in halves])
        )

    def group_sizes(self) -> Int64Array:
        """Return the number of rows of each request, int64 [R], in order."""
        return np.diff(np.append(group_starts(self.request), len(self))).astype(np.int64)

    def request_weights(self) -> Float64Array | None:
        """Return each request's weight, float64 [R]: the mean of its positive rows' weights.

        None stands for equal weights. NDCG compares a request with its own best order, in which the
        weight of a single positive row cancels out.
        """
        if self.weight is None:
            return None
        starts = group_starts(self.request)
        positive = self.positive().astype(np.float64)

        # Sums over the rows of each request, [R]; a request without a positive row counts 1.
        total = np.add.reduceat(positive * self.weights(), starts)
        count = np.add.reduceat(positive, starts)
        return np.divide(total, count, out=np.ones(len(starts)), where=count > 0)

    def request_users(self) -> Int64Array:
        """Return the user of each request, int64 [R]."""
        starts = group_starts(self.request)
        return np.arange(len(starts)) if self.user is None else self.user[starts]

    def positive(self) -> BoolArray:
        """Return which rows have any positive label, bool [n]."""
        return np.asarray(self.labels.max(axis=1) > 0)

    def relevance(self, schema: RowSchema) -> Float64Array:
        """Return the weight of rows with a relevant event, else 0, float64 [n].

        This is the gain of the primary NDCG.
        """
        labels = self.labels[:, schema.relevant] if schema.relevant else self.labels
        return np.where(labels.max(axis=1) > 0, self.weights().astype(np.float64), 0.0)

    def gain(self, schema: RowSchema) -> Float32Array:
        """Return the weighted sum of labels, at least 0, times the row's weight, float32 [n]."""
        return np.maximum(schema.score(self.labels), np.float32(0.0)) * self.weights()

    def digest(self) -> str:
        """Return a SHA-256 over every value that models depend on, which users are not."""
        total = hashlib.sha256()
        weight = () if self.weight is None else (self.weight,)
        for array in (self.numeric, self.categorical, self.labels, self.request, *weight):
            total.update(f"{array.dtype}{array.shape}".encode())
            total.update(np.ascontiguousarray(array).data)
        return total.hexdigest()


def group_starts(request: Int64Array) -> npt.NDArray[np.intp]:
    """Return the first row of each request, int [R], of sorted request ids [n]."""
    return np.flatnonzero(np.r_[True, request[1:] != request[:-1]])


def spaced_rows(n: int, limit: int) -> npt.NDArray[np.intp]:
    """Return ``min(n, limit)`` ascending row numbers, evenly spaced over ``n`` rows."""
    return np.arange(n) if n <= limit else np.linspace(0, n - 1, limit).astype(np.intp)
