"""Logistic regression per head: linear in the transformed columns, one weight for each category."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from feature_repo.arrays import Float32Array, Int32Array, Int64Array
from feature_repo.files import read_json, write_json
from ranking.models.base import Contributions, PredictsJoinedRows, largest, save_description
from ranking.row_schema import RowSchema
from ranking.sigmoid import sigmoid
from ranking.transform import RowTransform

_KNUTH = np.uint64(2654435761)


@dataclass(frozen=True)
class Slots:
    """The index of each category's weight.

    A column with at most ``hash_size`` codes has a slot for each; the codes of a wider one are
    hashed (Weinberger et al. 2009). Code 0, unknown, always has a slot of its own.
    """

    cardinalities: tuple[int, ...]
    hash_size: int

    @property
    def widths(self) -> Int64Array:
        """Slots of each column, int64 [C]."""
        return np.minimum(np.asarray(self.cardinalities, dtype=np.int64), self.hash_size)

    def __call__(self, codes: Int32Array) -> Int64Array:
        """Return the slot of every code, int64 [n, C], of known codes int32 [n, C]."""
        widths = self.widths
        starts = np.cumsum(widths) - widths
        slots = codes.astype(np.int64)
        for column in np.flatnonzero(widths < np.asarray(self.cardinalities)):
            mixed = (slots[:, column].astype(np.uint64) * _KNUTH) % np.uint64(2**32)
            hashed = 1 + (mixed % np.uint64(widths[column] - 1)).astype(np.int64)
            slots[:, column] = np.where(slots[:, column] == 0, 0, hashed)
        return slots + starts


@dataclass(frozen=True)
class LogisticRanker(PredictsJoinedRows):
    """A linear model per head.

    Attributes:
        schema: columns of a row.
        transform: what is done to numeric columns first.
        slots: index of each category's weight.
        weights: of transformed columns, float32 [F', T].
        category_weights: of slots, float32 [S, T].
        intercept: float32 [T].

    """

    kind: ClassVar[str] = "logistic"
    schema: RowSchema
    transform: RowTransform
    slots: Slots
    weights: Float32Array
    category_weights: Float32Array
    intercept: Float32Array

    def predict(self, numeric: Float32Array, categorical: Int32Array) -> Float32Array:
        """See ``Ranker.predict``."""
        slots = self.slots(self.schema.known_codes(categorical))
        logits = self.transform(numeric) @ self.weights + self.intercept
        for column in range(slots.shape[1]):
            logits += self.category_weights[slots[:, column]]
        return sigmoid(logits).astype(np.float32)

    def explain(
        self, numeric: Float32Array, categorical: Int32Array, top: int | None = None
    ) -> Contributions:
        """See ``Ranker.explain``: weight times value; a missing indicator counts for its column."""
        linear = self.transform(numeric[None, :])[0] * (self.weights @ self.schema.weights)
        values = np.bincount(
            self.transform.sources, weights=linear, minlength=len(self.schema.numeric)
        )
        slots = self.slots(self.schema.known_codes(categorical[None, :]))[0]
        names = self.schema.numeric + self.schema.categorical
        return largest(
            names, np.r_[values, self.category_weights[slots] @ self.schema.weights], top
        )

    def save(self, folder: Path) -> None:
        """See ``Ranker.save``."""
        save_description(folder, self.kind, self.schema, hash_size=self.slots.hash_size)
        write_json(folder / "transform.json", self.transform.to_dict())
        np.savez(
            folder / "weights.npz",
            weights=self.weights,
            category_weights=self.category_weights,
            intercept=self.intercept,
        )

    @classmethod
    def load(cls, folder: Path, schema: RowSchema) -> LogisticRanker:
        """Return the ranker saved in ``folder``."""
        slots = Slots(schema.cardinalities, read_json(folder / "model.json")["hash_size"])
        transform = RowTransform.from_dict(read_json(folder / "transform.json"))
        with np.load(folder / "weights.npz", allow_pickle=False) as arrays:
            return cls(
                schema,
                transform,
                slots,
                arrays["weights"],
                arrays["category_weights"],
                arrays["intercept"],
            )
