"""The logistic function, its inverse, and the fit of a monotone sigmoid to one column."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from feature_repo.arrays import Float64Array


def sigmoid(logits: npt.ArrayLike) -> Float64Array:
    """Return ``1 / (1 + exp(-x))``, float64, without overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * np.asarray(logits, dtype=np.float64)))


def logit(probabilities: npt.ArrayLike) -> Float64Array:
    """Return ``log(p / (1 - p))``, float64, finite also for 0 and 1."""
    values = np.asarray(probabilities, dtype=np.float64)
    return np.log(np.maximum(values, 1e-12)) - np.log(np.maximum(1.0 - values, 1e-12))


def fit_sigmoid(
    values: Float64Array, labels: npt.NDArray[np.floating], least_slope: float = 1e-3
) -> tuple[float, float]:
    """Return slope and intercept of the sigmoid that best explains 0/1 labels [n] by values [n].

    Targets are moved off 0 and 1 as Platt (1999) proposed, so that separable or one-sided labels
    have a finite answer. The slope is at least ``least_slope`` per standard deviation: what comes
    out never reverses the order of what went in.
    """
    from scipy.optimize import minimize  # serving imports this module and never fits

    centre, spread = float(values.mean()), float(values.std())
    if spread <= 1e-9 * max(1.0, abs(centre)):  # all the same, but for rounding
        centre, spread = float(values[0]), 1.0
    scaled = (values - centre) / spread
    positives = float(labels.sum())
    target = np.where(
        labels > 0, (positives + 1) / (positives + 2), 1 / (len(labels) - positives + 2)
    )

    def loss(parameters: Float64Array) -> tuple[float, Float64Array]:
        logits = parameters[0] * scaled + parameters[1]
        error = sigmoid(logits) - target
        value = float((np.logaddexp(0.0, logits) - target * logits).mean())
        return value, np.array([(error * scaled).mean(), error.mean()])

    start = np.array([1.0, float(logit(target.mean()))])
    bounds = [(least_slope, None), (None, None)]
    slope, intercept = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x
    return float(slope / spread), float(intercept - slope * centre / spread)
