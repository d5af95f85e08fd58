"""From raw numeric columns to what a linear model or a network can read."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from feature_repo.arrays import Float32Array, Float64Array, Int32Array
from ranking.data import spaced_rows

_CHUNK = 65_536
_SAMPLE = 200_000


@dataclass(frozen=True)
class RowTransform:
    """Imputation, logarithm, standardisation and clipping, learnt from training rows only.

    NaN and infinities count as missing. Output columns are the F standardised ones, then one
    0/1 indicator for each column in ``indicators``. Trees do not need any of this: they split
    on order, and LightGBM knows NaN.

    Attributes:
        median: what a missing value becomes, per column.
        log: whether ``sign(x) * log1p(|x|)`` is applied, per column.
        mean: mean after imputation and logarithm, per column.
        scale: standard deviation after the same, per column; 1 for constant columns.
        indicators: columns that had missing values in training.
        edges: ascending bucket borders of the raw values, per column.
        clip: largest absolute standardised value.

    """

    median: tuple[float, ...]
    log: tuple[bool, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    indicators: tuple[int, ...]
    edges: tuple[tuple[float, ...], ...]
    clip: float = 6.0

    @classmethod
    def fit(
        cls, numeric: Float32Array, *, buckets: int = 16, skew_limit: float = 1.0, clip: float = 6.0
    ) -> RowTransform:
        """Learn from training rows, float32 [n, F].

        Medians, moments and quantiles come from at most 200,000 evenly spaced rows, where they are
        known to a third of a percent; whether a column is ever missing is asked of all rows.

        Raises:
            ValueError: there are no rows.

        """
        if not len(numeric):
            raise ValueError("no rows to learn a transform from")
        sample = numeric[spaced_rows(len(numeric), _SAMPLE)]
        columns = [_learn(column.astype(np.float64), buckets, skew_limit) for column in sample.T]
        median, log, mean, scale, edges = zip(*columns, strict=True)
        missing = tuple(
            number for number, column in enumerate(numeric.T) if not np.isfinite(column).all()
        )
        return cls(median, log, mean, scale, missing, edges, clip)

    @property
    def sources(self) -> npt.NDArray[np.intp]:
        """Raw column behind each output column, int [F']."""
        return np.concatenate(
            [np.arange(len(self.median)), np.asarray(self.indicators, dtype=np.intp)]
        )

    @property
    def bucket_counts(self) -> tuple[int, ...]:
        """Number of bucket codes of each column, the code of missing included."""
        return tuple(len(edges) + 2 for edges in self.edges)

    @cached_property
    def _constants(self) -> tuple[Float64Array, Float64Array, Float64Array]:
        return np.array(self.median), np.array(self.mean), np.array(self.scale)

    @cached_property
    def _borders(self) -> tuple[Float32Array, ...]:
        return tuple(np.array(edges, dtype=np.float32) for edges in self.edges)

    def __call__(self, numeric: Float32Array) -> Float32Array:
        """Return float32 [n, F'] of raw rows [n, F].

        Finite, the first F columns within ±``clip``.
        """
        median, mean, scale = self._constants
        log, indicators = np.flatnonzero(self.log), np.array(self.indicators, dtype=np.intp)
        out = np.empty((len(numeric), len(median) + len(indicators)), dtype=np.float32)
        # float64, because a float32 difference of large values overflows. Chunks, because a million
        # rows of doubles would need several copies of half a gigabyte.
        for start in range(0, len(numeric), _CHUNK):
            rows = slice(start, start + _CHUNK)
            raw = numeric[rows].astype(np.float64)
            absent = ~np.isfinite(raw)
            values = np.where(absent, median, raw)
            if len(log):
                values[:, log] = _signed_log(values[:, log])
            out[rows, : len(median)] = np.clip((values - mean) / scale, -self.clip, self.clip)
            out[rows, len(median) :] = absent[:, indicators]
        return out

    def buckets(self, numeric: Float32Array) -> Int32Array:
        """Return bucket codes, int32 [n, F], of raw rows [n, F]: 0 for missing, else 1 + bucket."""
        out = np.empty(numeric.shape, dtype=np.int32)
        for column, borders in enumerate(self._borders):
            values = numeric[:, column]
            codes = np.searchsorted(borders, values, side="left") + 1
            out[:, column] = np.where(np.isfinite(values), codes, 0)
        return out

    def part(self, columns: slice) -> RowTransform:
        """Return the transform of neighbouring columns by themselves."""
        first, last, _ = columns.indices(len(self.median))
        indicators = tuple(column - first for column in self.indicators if first <= column < last)
        return RowTransform(
            median=self.median[columns],
            log=self.log[columns],
            mean=self.mean[columns],
            scale=self.scale[columns],
            indicators=indicators,
            edges=self.edges[columns],
            clip=self.clip,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-like values; Python floats survive JSON exactly."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RowTransform:
        """Return the transform that ``to_dict`` described.

        Raises:
            KeyError: a part is missing.

        """
        return cls(
            median=tuple(values["median"]),
            log=tuple(values["log"]),
            mean=tuple(values["mean"]),
            scale=tuple(values["scale"]),
            indicators=tuple(values["indicators"]),
            edges=tuple(tuple(edges) for edges in values["edges"]),
            clip=float(values["clip"]),
        )


def _learn(
    raw: Float64Array, buckets: int, skew_limit: float
) -> tuple[float, bool, float, float, tuple[float, ...]]:
    """Return median, log, mean, scale and edges of one column, float64 [n]."""
    present = raw[np.isfinite(raw)]
    if not len(present):
        return 0.0, False, 0.0, 1.0, ()
    median = float(np.median(present))
    log = abs(_skewness(present)) > skew_limit
    values = np.where(np.isfinite(raw), raw, median)
    if log:
        values = _signed_log(values)
    mean, deviation = float(values.mean()), float(values.std())
    # The deviation of a constant is rounding noise, and dividing by noise gives noise.
    constant = deviation <= 1e-9 * max(1e-30, abs(mean))
    # Edges are kept as float32 values, the type of the rows they are compared with.
    edges = np.unique(np.quantile(present, np.linspace(0, 1, buckets + 1)[1:-1]).astype(np.float32))
    return median, log, mean, 1.0 if constant else deviation, tuple(float(edge) for edge in edges)


def _skewness(values: Float64Array) -> float:
    deviation = values.std()
    if deviation <= 1e-9 * max(1e-30, abs(float(values.mean()))):
        return 0.0
    return float((((values - values.mean()) / deviation) ** 3).mean())


def _signed_log(values: Float64Array) -> Float64Array:
    return np.sign(values) * np.log1p(np.abs(values))
