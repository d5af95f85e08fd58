"""Turn each head's scores into probabilities that can be added up.

A score is a weighted sum over heads, so a head that is over-confident outvotes the others: every
head is calibrated on rows that its model has not seen, without changing its order.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from feature_repo.arrays import BoolArray, Float32Array, Float64Array, Int64Array
from ranking.data import group_starts
from ranking.metrics import log_loss
from ranking.sigmoid import fit_sigmoid, logit, sigmoid

Method = Literal["identity", "platt", "isotonic"]

RAW_SHARE = 1e-3
"""How much of the raw probability is mixed into an isotonic fit.

Isotonic regression is flat over long stretches, and rows on one stretch would tie. The raw share
keeps their order, and moves a probability by at most a thousandth.
"""

_LEAST_POSITIVES = 30


@dataclass(frozen=True)
class HeadCalibration:
    """A strictly increasing map from one head's raw probability to a calibrated one.

    ``platt``: ``sigmoid(slope * logit(p) + intercept)`` (Platt 1999; with intercept 0 it is the
    temperature scaling of Guo et al. 2017). ``isotonic``: linear between the knots (x, y) of an
    isotonic regression (Zadrozny & Elkan 2002), plus ``RAW_SHARE`` of the raw probability.
    ``identity``: for heads whose calibration rows have only one class.
    """

    method: Method = "identity"
    slope: float = 1.0
    intercept: float = 0.0
    x: tuple[float, ...] = ()
    y: tuple[float, ...] = ()

    def __call__(self, probabilities: npt.NDArray[np.floating]) -> Float64Array:
        """Return calibrated probabilities, float64 [n], of raw ones [n]."""
        p = probabilities.astype(np.float64)
        if self.method == "platt":
            return sigmoid(self.slope * logit(p) + self.intercept)
        if self.method == "isotonic":
            return (1 - RAW_SHARE) * np.interp(p, self.x, self.y) + RAW_SHARE * p
        return p


@dataclass(frozen=True)
class Calibration:
    """One map for each head."""

    heads: tuple[HeadCalibration, ...]

    def __call__(self, probabilities: Float32Array) -> Float64Array:
        """Return calibrated probabilities, float64 [n, T], of raw ones [n, T]."""
        columns = [head(probabilities[:, column]) for column, head in enumerate(self.heads)]
        return np.stack(columns, axis=1)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-like values."""
        return {"heads": [asdict(head) for head in self.heads]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Calibration:
        """Return the calibration that ``to_dict`` described."""
        heads = ({**head, "x": tuple(head["x"]), "y": tuple(head["y"])} for head in values["heads"])
        return cls(tuple(HeadCalibration(**head) for head in heads))


def fit_calibration(
    probabilities: Float32Array, labels: Float32Array, request: Int64Array
) -> Calibration:
    """Choose and fit a map for each head on held-out rows.

    Platt scaling and isotonic regression are fitted on every other request and compared by log loss
    on the rest; the winner is fitted again on all rows.

    Args:
        probabilities: raw, float32 [n, T].
        labels: 0/1, float32 [n, T].
        request: sorted ids, int64 [n].

    """
    # Alternate requests, not two blocks: rows are in order of time, and blocks would compare
    # seasons.
    position = np.cumsum(np.isin(np.arange(len(request)), group_starts(request))) - 1
    first = position % 2 == 0
    heads = range(probabilities.shape[1])
    return Calibration(
        tuple(_fit_head(probabilities[:, head], labels[:, head], first) for head in heads)
    )


def _fit_head(p: Float32Array, labels: Float32Array, first: BoolArray) -> HeadCalibration:
    positives = (int(labels[first].sum()), int(labels[~first].sum()))
    negatives = (int(first.sum()) - positives[0], int((~first).sum()) - positives[1])
    if not sum(positives) or not sum(negatives):
        return HeadCalibration()
    if (
        min(positives + negatives) < _LEAST_POSITIVES
    ):  # too few to choose by: the map with two parameters
        return _fit_platt(p, labels)
    fits = (_fit_platt, _fit_isotonic)
    losses = [log_loss(labels[~first], fit(p[first], labels[first])(p[~first])) for fit in fits]
    return fits[int(np.argmin(losses))](p, labels)


def _fit_platt(p: Float32Array, labels: Float32Array) -> HeadCalibration:
    slope, intercept = fit_sigmoid(logit(p), labels)
    return HeadCalibration("platt", slope, intercept)


def _fit_isotonic(p: Float32Array, labels: Float32Array) -> HeadCalibration:
    from sklearn.isotonic import IsotonicRegression  # serving imports this module and never fits

    fit = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(
        p.astype(np.float64), labels
    )
    x, y = (
        tuple(float(value) for value in knots) for knots in (fit.X_thresholds_, fit.y_thresholds_)
    )
    return HeadCalibration("isotonic", x=x, y=y)
