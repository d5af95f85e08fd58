"""The baseline that every other ranker has to beat: one count of how popular an item is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from feature_repo.arrays import Float32Array, Float64Array, Int32Array
from feature_repo.files import read_json
from ranking.config import PopularityConfig
from ranking.data import RankingData, RowSchema
from ranking.models.base import Contributions, PredictsJoinedRows, largest, save_description
from ranking.sigmoid import fit_sigmoid, sigmoid


@dataclass(frozen=True)
class PopularityRanker(PredictsJoinedRows):
    """``p_t = sigmoid(slope_t * log1p(count) + intercept_t)`` with slopes above 0.

    Attributes:
        schema: columns of a row.
        column: position of the count among the numeric columns.
        slope: one per head.
        intercept: one per head.

    """

    kind: ClassVar[str] = "popularity"
    schema: RowSchema
    column: int
    slope: tuple[float, ...]
    intercept: tuple[float, ...]

    def predict(self, numeric: Float32Array, categorical: Int32Array) -> Float32Array:  # noqa: ARG002
        """See ``Ranker.predict``."""
        return sigmoid(np.outer(self._evidence(numeric), self.slope) + self.intercept).astype(
            np.float32
        )

    def explain(
        self,
        numeric: Float32Array,
        categorical: Int32Array,  # noqa: ARG002
        top: int | None = None,
    ) -> Contributions:
        """See ``Ranker.explain``: the count is the only column."""
        value = self._evidence(numeric[None, :]) * (self.schema.weights @ np.asarray(self.slope))
        return largest([self.schema.numeric[self.column]], value, top)

    def save(self, folder: Path) -> None:
        """See ``Ranker.save``."""
        save_description(
            folder,
            self.kind,
            self.schema,
            column=self.column,
            slope=self.slope,
            intercept=self.intercept,
        )

    @classmethod
    def load(cls, folder: Path, schema: RowSchema) -> PopularityRanker:
        """Return the ranker saved in ``folder``."""
        values = read_json(folder / "model.json")
        return cls(schema, values["column"], tuple(values["slope"]), tuple(values["intercept"]))

    def _evidence(self, numeric: Float32Array) -> Float64Array:
        return _log_count(numeric[:, self.column])


def _log_count(values: Float32Array) -> Float64Array:
    """A missing count is a count of zero: nobody has met the item."""
    counts = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    return np.log1p(np.maximum(counts, 0.0))


def fit_popularity(
    train: RankingData, schema: RowSchema, config: PopularityConfig
) -> PopularityRanker:
    """Fit one sigmoid per head to the count."""
    column = schema.numeric.index(config.feature) if config.feature in schema.numeric else 0
    evidence = _log_count(train.numeric[:, column])
    fits = [fit_sigmoid(evidence, train.labels[:, head]) for head in range(len(schema.heads))]
    slope, intercept = zip(*fits, strict=True)
    return PopularityRanker(schema, column, slope, intercept)
