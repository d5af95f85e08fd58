"""Fits a logistic regression per head."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from feature_repo.arrays import Float32Array
from feature_repo.sanity import Guard
from ranking.config import LogisticConfig
from ranking.data import RankingData
from ranking.metrics import log_loss
from ranking.models.logistic import LogisticRanker, Slots
from ranking.sigmoid import sigmoid
from ranking.training.task import FitTask


def fit_logistic(task: FitTask, guard: Guard) -> LogisticRanker:
    """Fit one L2-regularised regression per head.

    At most ``max_rows`` evenly spaced rows are used: a few hundred weights are known well after
    them, and time grows with every further row. A head without both classes gets its (smoothed)
    base rate and no weights. The guard is shown each head's loss and gradient at the end of its
    fit.
    """
    config, schema = task.config.logistic, task.schema
    train = task.train.sample(config.max_rows)
    slots = Slots(schema.cardinalities, config.hash_size)
    design = _design(task, train, slots)

    fits = []
    for head in range(len(schema.heads)):
        fits.append(_fit_head(design, train.labels[:, head], train.weight, config))
        guard(*_loss_and_gradient(design, train.labels[:, head], *fits[-1]))

    # Weights of the dense columns, then of the slots: [F' + S, T].
    coefficients = np.stack([weights for weights, _ in fits], axis=1).astype(np.float32)
    width = len(task.transform.sources)
    return LogisticRanker(
        schema=schema,
        transform=task.transform,
        slots=slots,
        weights=coefficients[:width],
        category_weights=coefficients[width:],
        intercept=np.array([value for _, value in fits], dtype=np.float32),
    )


def overfit_logistic(task: FitTask) -> tuple[float, float]:
    """Overfit some rows of ``task.train``, almost without regularisation.

    A linear model can fit any labels of as many rows as its columns have independent directions,
    and in general of no more: half as many rows are taken.

    Returns:
        The loss, summed over heads, before and after.

    """
    batch = task.train
    slots = Slots(task.schema.cardinalities, LogisticConfig.hash_size)
    design = _design(task, batch, slots)
    rank = int(np.linalg.matrix_rank(design.toarray()))
    rows = batch.balanced_rows(max(2, rank // 2))
    config = LogisticConfig(regularisation=1e6)

    before = after = 0.0
    for head in range(batch.labels.shape[1]):
        labels = batch.labels[rows, head]
        before += log_loss(labels, np.full(len(rows), labels.mean()))
        fit = _fit_head(design[rows], labels, None, config)
        after += _loss_and_gradient(design[rows], labels, *fit)[0]
    return before, after


def _design(task: FitTask, rows: RankingData, slots: Slots) -> Any:
    """Return the sparse matrix [n, F' + S]: dense columns, then a 1 in every category's slot."""
    from scipy.sparse import csr_array, hstack

    dense = task.transform(rows.numeric)
    taken = slots(task.schema.known_codes(rows.categorical))
    n, columns = taken.shape
    ones = np.ones(n * columns, dtype=np.float32)
    pointers = np.arange(n + 1, dtype=np.int32) * columns
    shape = (n, int(slots.widths.sum()))
    categories = csr_array((ones, taken.ravel().astype(np.int32), pointers), shape=shape)
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
