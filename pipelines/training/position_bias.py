"""How likely a position of a list is looked at, estimated from what was shown and taken up."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ranking.data import Doubles, Floats, Ids

MOST = 10.0
"""No weight is larger: of positions that are hardly looked at, single clicks would decide everything."""

_BINS = 20
_LEAST_SHOWN = 100
_ROUNDS = 500
_CLOSE = 1e-7


@dataclass(frozen=True)
class PositionBias:
    """The examination model: an item is taken up if its position is looked at and it is relevant.

    Attributes:
        shown: int64 ``[K]``, how often each position was shown; the last one stands for all after
            it.
        clicked: int64 ``[K]``, how often what it showed was taken up.
        propensity: float64 ``[K]``, the chance that it is looked at; that of the most looked-at
            position is 1.

    """

    shown: Ids
    clicked: Ids
    propensity: Doubles

    @classmethod
    def estimate(cls, position: Ids, score: Floats, clicked: npt.NDArray[np.bool_]) -> PositionBias:
        """Estimate propensities by regression-EM, the score that ranked the items being the only regressor, in 20 bins.

        Wang et al. (2018), "Position bias estimation for unbiased learning to rank in personal
        search". Served lists are in order of the score, without random places, so click rates by
        position alone would hold the ranker's merit for the position's. The assumption instead: of
        items with about the same score, relevance does not depend on where they were shown.
        Requests differ in how good their candidates are, so that one score comes at many positions.

        Args:
            position: 0 the best, int64 ``[n]``, n at least 1.
            score: by which items were ranked, float32 ``[n]``.
            clicked: whether the item was taken up, bool ``[n]``.

        """
        enough = np.flatnonzero(np.bincount(position) >= _LEAST_SHOWN)
        # Positions seldom shown say too little by themselves.
        place = np.minimum(position, enough.max(initial=0))
        edges = np.unique(np.quantile(score, np.linspace(0, 1, _BINS + 1)[1:-1]))
        group = np.searchsorted(edges, score, side="right")
        cells = np.zeros((2, int(place.max()) + 1, len(edges) + 1))
        np.add.at(cells, (clicked.astype(np.int64), place, group), 1.0)
        shown, taken = cells.sum(axis=0), cells[1]
        propensity = _examined(shown, taken)
        return cls(
            shown.sum(axis=1).astype(np.int64), taken.sum(axis=1).astype(np.int64), propensity
        )

    def weights(self, position: Ids, clicked: npt.NDArray[np.bool_]) -> Floats:
        """Return inverse propensities of clicks, at most ``MOST``, and 1 for all else: float32 ``[n]``.

        After Joachims et al. (2017, "Unbiased learning-to-rank with biased feedback"): a click at a
        place that is looked at half as often stands for two.
        """
        propensity = self.propensity[np.minimum(position, len(self.propensity) - 1)]
        return np.where(clicked, 1.0 / np.maximum(propensity, 1.0 / MOST), 1.0).astype(np.float32)

    def table(self) -> list[dict[str, float]]:
        """Return each position's figures, JSON-ready."""
        columns = zip(
            self.shown.tolist(), self.clicked.tolist(), self.propensity.tolist(), strict=True
        )
        return [
            {
                "position": number,
                "shown": shown,
                "click_rate": clicked / max(shown, 1),
                "propensity": propensity,
            }
            for number, (shown, clicked, propensity) in enumerate(columns)
        ]


def _examined(shown: Doubles, taken: Doubles) -> Doubles:
    """Return the likeliest examination of each position, ``[K]``, of counts ``[K, bins]``.

    EM of ``P(click) = looked_at[position] * relevant[bin]``: what was not taken up may have been
    either not looked at or not relevant.
    """
    looked_at, relevant = np.full(shown.shape[0], 0.5), np.full(shown.shape[1], 0.5)
    for _ in range(_ROUNDS):
        both = looked_at[:, None] * relevant
        missed = (shown - taken) / np.maximum(1.0 - both, 1e-12)
        seen = taken + missed * (looked_at[:, None] - both)
        wanted = taken + missed * (relevant - both)
        before = looked_at
        looked_at = seen.sum(axis=1) / np.maximum(shown.sum(axis=1), 1.0)
        relevant = wanted.sum(axis=0) / np.maximum(shown.sum(axis=0), 1.0)
        if np.abs(looked_at - before).max() < _CLOSE:
            break
    return looked_at / max(float(looked_at.max()), 1e-12)
