"""How sure the figures are: bootstrap over users, and paired tests of two models on the same events.

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

Values = npt.NDArray[np.float64]

RESAMPLES = 1_000
LEVEL = 0.95
_CELLS = 8_000_000


class UserBootstrap:
    """Resamples of the users of ``n`` events."""

    def __init__(self, users: npt.NDArray[Any], resamples: int = RESAMPLES, seed: int = 17) -> None:
        """``users`` ``[n]``: whose event each is."""
        names, self._user = np.unique(users, return_inverse=True)
        self.size, self._resamples, self._seed = len(names), resamples, seed

    def totals(self, values: npt.NDArray[Any]) -> Values:
        """Return each user's sum of per-event values ``[n]``, float64 ``[U]``."""
        return np.asarray(
            np.bincount(self._user, weights=values, minlength=self.size), dtype=np.float64
        )

    def ratios(self, totals: Values, counts: Values) -> Values:
        """Return ``sum(totals) / sum(counts)`` of every resample, float64 ``[R, C]``; both are ``[U, C]``.

        NaN where a resample has none of the users that count.
        """
        generator = np.random.default_rng(self._seed)
        rows = max(1, _CELLS // max(self.size, 1))
        found = np.empty((self._resamples, totals.shape[1]))
        for start in range(0, self._resamples, rows):
            part = min(rows, self._resamples - start)
            drawn = (
                generator.integers(self.size, size=(part, self.size))
                + self.size * np.arange(part)[:, None]
            )
            times = np.bincount(drawn.ravel(), minlength=part * self.size).reshape(part, self.size)
            below = times @ counts
            found[start : start + part] = times @ totals / np.where(below > 0, below, np.nan)
        return found

    def means(
        self,
        values: Sequence[npt.NDArray[Any]],
        where: Sequence[npt.NDArray[np.bool_]] | None = None,
    ) -> Values:
        """Return the means of several per-event values in every resample, float64 ``[R, C]``.

        Args:
            values: ``C`` arrays ``[n]``.
            where: for each, which events count, bool ``[n]`` (default: all).

        """
        if not len(values) or not self.size:
            return np.full((self._resamples, len(values)), np.nan)
        kept = [np.ones(len(self._user))] * len(values) if where is None else where
        totals = [self.totals(value * keep) for value, keep in zip(values, kept, strict=True)]
        return self.ratios(
            np.stack(totals, axis=1), np.stack([self.totals(keep) for keep in kept], axis=1)
        )


def interval(draws: Values) -> list[float] | None:
    """Return the percentile interval of one figure's resamples ``[R]``; None where there are none."""
    draws = draws[~np.isnan(draws)]
    if not len(draws):
        return None
    return [float(bound) for bound in np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])]


def paired(users: UserBootstrap, first: Values, second: Values) -> dict[str, Any]:
    """Compare two models event by event: per-event figures float64 ``[n]`` of the same events.

    Returns:
        ``first``, ``second`` and ``difference`` of the means over events, its bootstrap
        ``interval``, ``p_bootstrap`` (two-sided, from the share of resamples on either side of 0;
        Efron and Tibshirani, 1993; never less than what so few users allow) and ``p_wilcoxon``
        (signed ranks of the users' mean differences).

    """
    difference = first - second
    draws = users.means([difference])[:, 0]
    draws = draws[~np.isnan(draws)]
    side = min(int((draws <= 0).sum()), int((draws >= 0).sum()))
    of_user = users.totals(difference) / np.maximum(users.totals(np.ones(len(difference))), 1)
    # Sums of equal numbers in another order differ by rounding, and a rank test would count that.
    of_user[np.abs(of_user) < 1e-12] = 0.0
    return {
        "first": float(first.mean()) if len(first) else 0.0,
        "second": float(second.mean()) if len(second) else 0.0,
        "difference": float(difference.mean()) if len(difference) else 0.0,
        "interval": interval(draws),
        "p_bootstrap": min(
            1.0, max(2.0 * (1 + side) / (1 + len(draws)), 2.0 * float(users.size) ** -users.size)
        ),
        "p_wilcoxon": float(wilcoxon(of_user).pvalue) if of_user.any() else 1.0,
    }
