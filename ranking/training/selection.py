"""Chooses the ranker to serve: the cheapest of those that are not clearly worse than the best."""

from __future__ import annotations

from collections.abc import Mapping

from ranking.report import NdcgGap

BY_SERVING_COST = ("popularity", "logistic", "lambdarank", "lightgbm", "dcn")
"""All kinds, the cheapest first: one booster, then one per head, then the network."""

BASELINE = "popularity"
"""Chosen only if nothing is better: with few requests its gap would pass for chance."""


def choose_kind(behind: Mapping[str, NdcgGap], standard_errors: float, largest_gap: float) -> str:
    """Return the kind that is cheapest to serve among those that are not clearly worse.

    Breiman et al. (1984, "Classification and Regression Trees", 3.4.3) choose the simplest within
    one standard error. Differences here are paired, and 95 of 100 samples of equal kinds stay
    within two standard errors.

    Args:
        behind: each kind's distance from the highest NDCG.
        standard_errors: a kind is not clearly worse within this many of them ...
        largest_gap: ... unless its NDCG is further below than this.

    """
    near = [
        kind
        for kind in BY_SERVING_COST
        if kind in behind
        and behind[kind].below <= min(standard_errors * behind[kind].standard_error, largest_gap)
    ]
    return next(kind for kind in near if kind != BASELINE or behind[kind].below == 0.0)
