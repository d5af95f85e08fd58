"""Logistic regression per head: linear in the transformed columns, one weight for each category."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from feature_repo.arrays import Float32Array, Int32Array, Int64Array
from feature_repo.files import read_json, write_json
from feature_repo.sanity import Guard
from ranking.config import LogisticConfig
from ranking.data import RankingData, RowSchema
from ranking.metrics import log_loss
from ranking.models.base import Contributions, PredictsJoinedRows, largest, save_description
from ranking.sigmoid import sigmoid
from ranking.transform import RowTransform

_KNUTH = np.uint64(2654435761)


@dataclass(frozen=True)
class Slots:
    """Where each category's weight lies: its own slot, or a hashed one for columns wider than ``hash_size``.

    Hashing after Weinberger et al. (2009); code 0, unknown, always has a slot of its own.
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
        slots: where the weight of a category lies.
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


def fit_logistic(
    train: RankingData,
    transform: RowTransform,
    schema: RowSchema,
    config: LogisticConfig,
    guard: Guard,
) -> LogisticRanker:
    """Fit one L2-regularised regression per head.

    At most ``max_rows`` evenly spaced rows are used: a few hundred weights are known well after
    them, and time grows with every further row. A head without both classes gets its (smoothed)
    base rate and no weights. The guard is shown each head's loss and gradient where its fit ended.
    """
    train = train.spread(config.max_rows)
    slots = Slots(schema.cardinalities, config.hash_size)
    design = _design(transform(train.numeric), slots(schema.known_codes(train.categorical)), slots)
    fits = []
    for head in range(len(schema.heads)):
        fits.append(_fit_head(design, train.labels[:, head], train.weight, config))
        guard(*_loss_and_gradient(design, train.labels[:, head], *fits[-1]))
    coefficients = np.stack([weights for weights, _ in fits], axis=1).astype(np.float32)
    width = len(transform.sources)
    intercept = np.array([value for _, value in fits], dtype=np.float32)
    return LogisticRanker(
        schema, transform, slots, coefficients[:width], coefficients[width:], intercept
    )


def overfit_logistic(
    batch: RankingData, transform: RowTransform, schema: RowSchema
) -> tuple[float, float]:
    """Learn some rows by heart, almost without regularisation; return the loss summed over heads before and after.

    A linear model can give any labels to as many rows as its columns have independent directions,
    and to no more in
    general: of the batch, half as many are taken.
    """
    slots = Slots(schema.cardinalities, LogisticConfig.hash_size)
    design = _design(transform(batch.numeric), slots(schema.known_codes(batch.categorical)), slots)
    rank = int(np.linalg.matrix_rank(design.toarray()))
    rows = batch.balanced_rows(max(2, rank // 2))
    part, labels, config = design[rows], batch.labels[rows], LogisticConfig(regularisation=1e6)
    before = after = 0.0
    for head in range(labels.shape[1]):
        of_head = labels[:, head]
        before += log_loss(of_head, np.full(len(rows), of_head.mean()))
        after += _loss_and_gradient(part, of_head, *_fit_head(part, of_head, None, config))[0]
    return before, after


def _design(dense: Float32Array, slots: Int64Array, layout: Slots) -> Any:
    """Return the sparse matrix [n, F' + S]: dense columns, then a 1 in every category's slot."""
    from scipy.sparse import csr_array, hstack

    n, columns = slots.shape
    ones = np.ones(n * columns, dtype=np.float32)
    pointers = np.arange(n + 1, dtype=np.int32) * columns
    shape = (n, int(layout.widths.sum()))
    categories = csr_array((ones, slots.ravel().astype(np.int32), pointers), shape=shape)
    return hstack([csr_array(dense), categories], format="csr")


def _fit_head(
    design: Any, labels: Float32Array, weight: Float32Array | None, config: LogisticConfig
) -> tuple[npt.NDArray[np.floating], float]:
    """Return weights [F' + S] and the intercept of one head."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    positives, n = float(labels.sum()), len(labels)
    if positives in (0.0, n):
        return np.zeros(design.shape[1]), float(np.log((positives + 0.5) / (n - positives + 0.5)))
    model = LogisticRegression(
        C=config.regularisation,
        class_weight=config.class_weight,
        max_iter=config.max_iterations,
        tol=1e-3,
    )
    with warnings.catch_warnings():
        # A fit cut short by max_iterations is a little more regularised, which is no reason to
        # stop.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(design, labels, sample_weight=weight)
    return model.coef_[0], float(model.intercept_[0])


def _loss_and_gradient(
    design: Any, labels: Float32Array, weights: npt.NDArray[np.floating], intercept: float
) -> tuple[float, float]:
    """Return the mean log loss over rows and the norm of its gradient."""
    p = sigmoid(design @ weights + intercept)
    error = (p - labels) / len(labels)
    return log_loss(labels, p), float(np.linalg.norm(np.append(design.T @ error, error.sum())))
