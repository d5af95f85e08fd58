"""How sure the figures are: bootstrap over users, and paired tests of two models on equal events.

Users are what is resampled (a cluster bootstrap: Field and Welsh, JRSS B 2007), since the events of
one user are not independent. The same seed draws the same users again, so differences of any two
figures are paired.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import wilcoxon

from feature_repo.arrays import BoolArray, Float64Array
from pipelines.evaluation.figures import Interval, PairedDifference

RESAMPLES = 1_000
LEVEL = 0.95
_CELLS = 8_000_000
"""Largest matrix of resamples by users that is made at once."""


class UserBootstrap:
    """Resamples of the U users of ``n`` events.

    Attributes:
        size: U.

    """

    def __init__(self, users: npt.NDArray[Any], resamples: int = RESAMPLES, seed: int = 17) -> None:
        """``users`` ``[n]``: the user of each event."""
        names, self._user = np.unique(users, return_inverse=True)
        self.size = len(names)
        self._resamples = resamples
        self._seed = seed

    def totals(self, values: npt.NDArray[Any]) -> Float64Array:
        """Return each user's sum of per-event values ``[n]``, float64 ``[U]``."""
        return np.asarray(
            np.bincount(self._user, weights=values, minlength=self.size), dtype=np.float64
        )

    def ratios(self, totals: Float64Array, counts: Float64Array) -> Float64Array:
        """Return ``sum(totals) / sum(counts)`` of every resample, float64 ``[R, C]``.

        NaN where a resample has none of the users that count.

        Args:
            totals: float64 ``[U, C]``.
            counts: float64 ``[U, C]``.

        """
        generator = np.random.default_rng(self._seed)
        rows = max(1, _CELLS // max(self.size, 1))
        ratios = np.empty((self._resamples, totals.shape[1]))
        for start in range(0, self._resamples, rows):
            # How often each of these resamples has each user, [part, U].
            part = min(rows, self._resamples - start)
            users = generator.integers(self.size, size=(part, self.size))
            cells = users + self.size * np.arange(part)[:, None]
            multiplicity = np.bincount(cells.ravel(), minlength=part * self.size)
            multiplicity = multiplicity.reshape(part, self.size)

            denominator = multiplicity @ counts
            ratios[start : start + part] = (
                multiplicity @ totals / np.where(denominator > 0, denominator, np.nan)
            )
        return ratios

    def means(
        self,
        values: Sequence[npt.NDArray[Any]],
        masks: Sequence[BoolArray] | None = None,
    ) -> Float64Array:
        """Return the means of several per-event values in every resample, float64 ``[R, C]``.

        Args:
            values: ``C`` arrays ``[n]``.
            masks: for each, which events count, bool ``[n]`` (default: all).

        """
        if not len(values) or not self.size:
            return np.full((self._resamples, len(values)), np.nan)
        included = [np.ones(len(self._user))] * len(values) if masks is None else masks
        totals = [self.totals(value * mask) for value, mask in zip(values, included, strict=True)]
        counts = [self.totals(mask) for mask in included]
        return self.ratios(np.stack(totals, axis=1), np.stack(counts, axis=1))


def interval(draws: Float64Array) -> Interval | None:
    """Return the percentile interval of one figure's resamples ``[R]``; None where all are NaN."""
    draws = draws[~np.isnan(draws)]
    if not len(draws):
        return None
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def paired(users: UserBootstrap, first: Float64Array, second: Float64Array) -> PairedDifference:
    """Compare two models event by event: per-event figures float64 ``[n]`` of the same events.

    Returns:
        the means over events, their difference, its bootstrap interval, ``p_bootstrap``
        (two-sided, from the share of resamples on either side of 0; Efron and Tibshirani, 1993;
        never below what so few users allow) and ``p_wilcoxon`` (signed ranks of the users' mean
        differences).

    """
    difference = first - second
    draws = users.means([difference])[:, 0]
    draws = draws[~np.isnan(draws)]

    # Two-sided p from the smaller tail; U users allow U^U resamples.
    tail = min(int((draws <= 0).sum()), int((draws >= 0).sum()))
    least = 2.0 * float(users.size) ** -users.size
    p_bootstrap = min(1.0, max(2.0 * (1 + tail) / (1 + len(draws)), least))

    # Each user's mean difference, [U]. Sums of equal numbers in another order differ by rounding,
    # and a rank test would count that.
    by_user = users.totals(difference) / np.maximum(users.totals(np.ones(len(difference))), 1)
    by_user[np.abs(by_user) < 1e-12] = 0.0

    return PairedDifference(
        first=float(first.mean()) if len(first) else 0.0,
        second=float(second.mean()) if len(second) else 0.0,
        difference=float(difference.mean()) if len(difference) else 0.0,
        interval=interval(draws),
        p_bootstrap=p_bootstrap,
        p_wilcoxon=float(wilcoxon(by_user).pvalue) if by_user.any() else 1.0,
    )
