"""The baseline that every other ranker has to beat: one count of how popular an item is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from feature_repo.arrays import Float32Array, Float64Array, Int32Array
from feature_repo.files import read_json
from ranking.models.base import Contributions, PredictsJoinedRows, largest, save_description
from ranking.row_schema import RowSchema
from ranking.sigmoid import sigmoid


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
        return log_count(numeric[:, self.column])


def log_count(values: Float32Array) -> Float64Array:
    """Return ``log1p`` of counts, float64 [n].

    A missing count is 0, as of an item without events.
    """
    counts = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    return np.log1p(np.maximum(counts, 0.0))
