"""The columns of a ranker's row: names, cardinalities, and the event types that it predicts."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from feature_repo.arrays import Float32Array, Float64Array, Int32Array
from ranking.rows import PAIR_COLUMNS


@dataclass(frozen=True)
class RowSchema:
    """Names and meaning of a row's columns; the same object travels with every saved model.

    Attributes:
        numeric: names of the F numeric columns.
        categorical: names of the C categorical columns.
        cardinalities: number of codes of each categorical column; codes run from 0 to
            cardinality - 1, and 0 means unknown.
        heads: the T event types that are predicted.
        head_weights: how much one event of each type adds to the score; may be negative.
        relevant: whether an event of each type makes the item relevant; empty: every type does.
        pair_columns: how many of the first numeric columns are of user and item together.

    Raises:
        ValueError: the parts disagree, a name occurs twice, or there is no numeric column or head.

    """

    numeric: tuple[str, ...]
    categorical: tuple[str, ...]
    cardinalities: tuple[int, ...]
    heads: tuple[str, ...]
    head_weights: tuple[float, ...]
    relevant: tuple[bool, ...] = ()
    pair_columns: int = PAIR_COLUMNS

    def __post_init__(self) -> None:
        names = self.numeric + self.categorical
        if len(set(names)) != len(names) or len(set(self.heads)) != len(self.heads):
            raise ValueError("two columns or two heads have the same name")
        if not self.numeric or not self.heads:
            raise ValueError("a row needs at least one numeric column and one head")
        if len(self.categorical) != len(self.cardinalities):
            raise ValueError("cardinalities and categorical columns differ in number")
        if len(self.heads) != len(self.head_weights):
            raise ValueError("head_weights and heads differ in number")
        if self.relevant and (len(self.relevant) != len(self.heads) or not any(self.relevant)):
            raise ValueError("relevant needs a value for each head, at least one of them true")
        if any(size < 1 for size in self.cardinalities):
            raise ValueError("cardinalities must be at least 1")
        if not all(map(math.isfinite, self.head_weights)):
            raise ValueError("head_weights must be finite")

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
        expected = (n, len(self.numeric)), (n, len(self.categorical))
        if (numeric.shape, categorical.shape) != expected:
            raise ValueError(
                f"rows of shape {numeric.shape} and {categorical.shape}, the schema has "
                f"{len(self.numeric)} numeric and {len(self.categorical)} categorical columns"
            )

    def extends(self, earlier: RowSchema) -> bool:
        """Return whether columns and heads equal an earlier schema's, with at least its codes."""
        same = (
            self.numeric == earlier.numeric
            and self.categorical == earlier.categorical
            and self.heads == earlier.heads
        )
        sizes = zip(self.cardinalities, earlier.cardinalities, strict=False)
        return same and all(now >= before for now, before in sizes)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-like values; releases store ``relevant`` as ``wanted``."""
        values = asdict(self)
        values["wanted"] = values.pop("relevant")
        if self.pair_columns == PAIR_COLUMNS:
            del values["pair_columns"]
        return values

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
            relevant=tuple(bool(relevant) for relevant in values.get("wanted", ())),
            pair_columns=int(values.get("pair_columns", PAIR_COLUMNS)),
        )
