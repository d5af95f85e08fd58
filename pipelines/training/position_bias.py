"""How likely a list position is examined, estimated from impressions and clicks.

A click stands for any positive event that followed an impression.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from feature_repo.arrays import BoolArray, Float32Array, Float64Array, Int64Array

MAX_WEIGHT = 10.0
"""No click weighs more: at positions that are hardly examined, single clicks would decide."""

_SCORE_BINS = 20
_MIN_SHOWN = 100
"""Impressions that a position needs for an estimate of its own."""

_MAX_ITERATIONS = 500
_CONVERGED = 1e-7


@dataclass(frozen=True)
class PositionBias:
    """The examination model: an item is clicked if its position is examined and it is relevant.

    Attributes:
        shown: int64 ``[K]``, impressions of each position; the last one stands for all after it.
        clicked: int64 ``[K]``, clicks at each position.
        propensity: float64 ``[K]``, the probability that a position is examined, relative to the
            position that is examined most.

    """

    shown: Int64Array
    clicked: Int64Array
    propensity: Float64Array

    @classmethod
    def estimate(
        cls, position: Int64Array, score: Float32Array, clicked: BoolArray
    ) -> PositionBias:
        """Estimate propensities by regression-EM; the only regressor is the ranking score, binned.

        Wang et al. (2018), "Position bias estimation for unbiased learning to rank in personal
        search". Served lists are in order of the score, without random positions, so click rates
        by position alone would mistake the ranker's merit for the position's. The assumption
        instead: of items with about the same score, relevance does not depend on the position.
        Requests differ in how good their candidates are, so one score occurs at many positions.

        Args:
            position: 0 the best, int64 ``[n]``, n at least 1.
            score: by which items were ranked, float32 ``[n]``.
            clicked: whether the item was clicked, bool ``[n]``.

        """
        # Positions with few impressions are merged into the last one that has enough.
        frequent = np.flatnonzero(np.bincount(position) >= _MIN_SHOWN)
        slot = np.minimum(position, frequent.max(initial=0))

        # Impressions and clicks by position and score bin, both [K, bins].
        edges = np.unique(np.quantile(score, np.linspace(0, 1, _SCORE_BINS + 1)[1:-1]))
        score_bin = np.searchsorted(edges, score, side="right")
        counts = np.zeros((2, int(slot.max()) + 1, len(edges) + 1))
        np.add.at(counts, (clicked.astype(np.int64), slot, score_bin), 1.0)
        impressions = counts.sum(axis=0)
        clicks = counts[1]

        return cls(
            shown=impressions.sum(axis=1).astype(np.int64),
            clicked=clicks.sum(axis=1).astype(np.int64),
            propensity=_examination(impressions, clicks),
        )

    def weights(self, position: Int64Array, clicked: BoolArray) -> Float32Array:
        """Return inverse propensities of clicks, at most ``MAX_WEIGHT``, and 1 for all else.

        After Joachims et al. (2017, "Unbiased learning-to-rank with biased feedback"): a click at
        a position that is examined half as often stands for two.

        Returns:
            float32 ``[n]``.

        """
        propensity = self.propensity[np.minimum(position, len(self.propensity) - 1)]
        inverse = 1.0 / np.maximum(propensity, 1.0 / MAX_WEIGHT)
        return np.where(clicked, inverse, 1.0).astype(np.float32)

    def table(self) -> list[dict[str, int | float]]:
        """Return each position's figures, JSON-ready."""
        columns = zip(
            self.shown.tolist(), self.clicked.tolist(), self.propensity.tolist(), strict=True
        )
        return [
            {
                "position": position,
                "shown": shown,
                "click_rate": clicked / max(shown, 1),
                "propensity": propensity,
            }
            for position, (shown, clicked, propensity) in enumerate(columns)
        ]


def _examination(shown: Float64Array, clicked: Float64Array) -> Float64Array:
    """Return the most likely examination of each position, ``[K]``, from counts ``[K, bins]``.

    EM of ``P(click) = examined[position] * relevant[bin]``: what was not clicked was either not
    examined or not relevant.
    """
    examined = np.full(shown.shape[0], 0.5)
    relevant = np.full(shown.shape[1], 0.5)
    for _ in range(_MAX_ITERATIONS):
        # E-step: expected counts of examined and of relevant impressions, [K, bins].
        click_rate = examined[:, None] * relevant
        missed = (shown - clicked) / np.maximum(1.0 - click_rate, 1e-12)
        expected_examined = clicked + missed * (examined[:, None] - click_rate)
        expected_relevant = clicked + missed * (relevant - click_rate)

        # M-step: their shares of the impressions, by position and by bin.
        before = examined
        examined = expected_examined.sum(axis=1) / np.maximum(shown.sum(axis=1), 1.0)
        relevant = expected_relevant.sum(axis=0) / np.maximum(shown.sum(axis=0), 1.0)
        if np.abs(examined - before).max() < _CONVERGED:
            break
    return examined / max(float(examined.max()), 1e-12)
