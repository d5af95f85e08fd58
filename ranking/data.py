"""What a ranker reads: the columns of a row, and the rows of many requests."""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from feature_repo.arrays import BoolArray, Float32Array, Float64Array, Int32Array, Int64Array


@dataclass(frozen=True)
class RowSchema:
    """Names and meaning of a row's columns; the same object travels with every saved model.

    Attributes:
        numeric: names of the F numeric columns.
        categorical: names of the C categorical columns.
        cardinalities: number of codes of each categorical column; codes run from 0 to
            cardinality - 1, and 0 means unknown.
        heads: the T event types that are predicted.
        head_weights: what one event of each type is worth; may be negative.
        wanted: whether an event of each type says that the user wanted the item; empty: each does.

    Raises:
        ValueError: the parts disagree, a name occurs twice, or there is no numeric column or head.

    """

    numeric: tuple[str, ...]
    categorical: tuple[str, ...]
    cardinalities: tuple[int, ...]
    heads: tuple[str, ...]
    head_weights: tuple[float, ...]
    wanted: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        names = self.numeric + self.categorical
        if len(set(names)) != len(names) or len(set(self.heads)) != len(self.heads):
            raise ValueError("a column or head is named twice")
        if not self.numeric or not self.heads:
            raise ValueError("a row needs at least one numeric column and one head")
        if len(self.categorical) != len(self.cardinalities) or len(self.heads) != len(
            self.head_weights
        ):
            raise ValueError("cardinalities or head_weights do not match the names")
        if self.wanted and (len(self.wanted) != len(self.heads) or not any(self.wanted)):
            raise ValueError("wanted does not match the heads, or has none")
        if any(size < 1 for size in self.cardinalities) or not all(
            map(math.isfinite, self.head_weights)
        ):
            raise ValueError("cardinalities must be at least 1 and head_weights finite")

    @cached_property
    def weights(self) -> Float64Array:
        """Head weights, float64 [T]."""
        return np.asarray(self.head_weights, dtype=np.float64)

    def score(self, probabilities: npt.ArrayLike) -> Float32Array:
        """Return ``sum_t weight_t * p_t``, float32 [n], of probabilities [n, T]."""
        return (np.asarray(probabilities, dtype=np.float64) @ self.weights).astype(np.float32)

    def known_codes(self, categorical: Int32Array) -> Int32Array:
        """Return the codes, int32 [n, C], with every code outside its column's range set to 0.

        A vocabulary may grow between training and serving; a model must not read past its tables.
        """
        sizes = np.asarray(self.cardinalities, dtype=np.int32)
        codes = np.asarray(categorical, dtype=np.int32)
        return np.where((codes >= 0) & (codes < sizes), codes, np.int32(0))

    def check_rows(self, numeric: Float32Array, categorical: Int32Array) -> None:
        """Refuse rows of another shape.

        Raises:
            ValueError: ``numeric`` is not [n, F] or ``categorical`` not [n, C].

        """
        n = len(numeric)
        if numeric.shape != (n, len(self.numeric)) or categorical.shape != (
            n,
            len(self.categorical),
        ):
            raise ValueError(
                f"rows of shape {numeric.shape} and {categorical.shape}, "
                f"the schema has {len(self.numeric)} numeric and {len(self.categorical)} categorical columns"
            )

    def extends(self, earlier: RowSchema) -> bool:
        """Return whether rows mean what they meant in an earlier schema, save that there may be more codes."""
        same = (self.numeric, self.categorical, self.heads) == (
            earlier.numeric,
            earlier.categorical,
            earlier.heads,
        )
        return same and all(
            n >= m for n, m in zip(self.cardinalities, earlier.cardinalities, strict=True)
        )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-like values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RowSchema:
        """Return the schema that ``to_dict`` described.

        Raises:
            ValueError: the parts disagree.
            KeyError: a part is missing.

        """
        return cls(
            numeric=tuple(values["numeric"]),
            categorical=tuple(values["categorical"]),
            cardinalities=tuple(int(size) for size in values["cardinalities"]),
            heads=tuple(values["heads"]),
            head_weights=tuple(float(weight) for weight in values["head_weights"]),
            wanted=tuple(bool(wanted) for wanted in values.get("wanted", ())),
        )


@dataclass
class RankingData:
    """Rows of many requests with what happened to them.

    Attributes:
        numeric: float32 [n, F]; NaN means missing.
        categorical: int32 [n, C].
        labels: float32 [n, T], 0 or 1.
        request: int64 [n], ascending: rows of one request stand together.
        weight: float32 [n], how much a row counts in losses and as a gain; None: 1 each.
        user: int64 [n], whose request each row is, as any numbers; None: every request is another
            user's.

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
            self.numeric[rows],
            self.categorical[rows],
            self.labels[rows],
            self.request[rows],
            None if self.weight is None else self.weight[rows],
            None if self.user is None else self.user[rows],
        )

    def weights(self) -> Float32Array:
        """Return how much each row counts, float32 [n]."""
        return np.ones(len(self), dtype=np.float32) if self.weight is None else self.weight

    def spread(self, limit: int) -> RankingData:
        """Return at most ``limit`` rows, evenly spaced, so that every period is present."""
        return self if len(self) <= limit else self.take(spaced_rows(len(self), limit))

    def balanced_rows(self, limit: int) -> npt.NDArray[np.intp]:
        """Return ascending numbers of at most ``limit`` rows, evenly spaced, half of them with a positive label."""
        positive = self.happened()
        halves = [np.flatnonzero(positive), np.flatnonzero(~positive)]
        return np.sort(
            np.concatenate([half[spaced_rows(len(half), limit // 2)] for half in halves])
        )

    def group_sizes(self) -> Int64Array:
        """Return the number of rows of each request, int64 [R], in order."""
        return np.diff(np.append(group_starts(self.request), len(self))).astype(np.int64)

    def request_weights(self) -> Float64Array | None:
        """Return how much each request counts, float64 [R]: the mean weight of its positive rows; None: all alike.

        NDCG compares a request with its own best order, in which the weight of a single positive
        row cancels out.
        """
        if self.weight is None:
            return None
        starts, happened = group_starts(self.request), self.happened().astype(np.float64)
        total, count = (
            np.add.reduceat(values, starts) for values in (happened * self.weights(), happened)
        )
        return np.divide(total, count, out=np.ones(len(starts)), where=count > 0)

    def request_users(self) -> Int64Array:
        """Return whose each request is, int64 [R]."""
        starts = group_starts(self.request)
        return np.arange(len(starts)) if self.user is None else self.user[starts]

    def happened(self) -> BoolArray:
        """Return which rows have any positive label, bool [n]."""
        return np.asarray(self.labels.max(axis=1) > 0)

    def wanted(self, schema: RowSchema) -> Float64Array:
        """Return the weight of rows whose item was wanted, else 0: float64 [n], the gain of the primary NDCG."""
        labels = self.labels[:, schema.wanted] if schema.wanted else self.labels
        return np.where(labels.max(axis=1) > 0, self.weights().astype(np.float64), 0.0)

    def worth(self, schema: RowSchema) -> Float32Array:
        """Return the weighted label times the row's weight, float32 [n], at least 0: a gain is never negative."""
        return np.maximum(schema.score(self.labels), np.float32(0.0)) * self.weights()

    def digest(self) -> str:
        """Return a SHA-256 over every value that models depend on (not users): equal data, equal digest."""
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
    """Return ``min(n, limit)`` ascending row numbers, evenly spaced over ``n`` rows: a sample without a seed."""
    return np.arange(n) if n <= limit else np.linspace(0, n - 1, limit).astype(np.intp)
