"""What the recommender returns: lists of items, and the ranked candidates behind them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from feature_repo.arrays import Float32Array, Int32Array, Int64Array
from ranking.rows import PairRows
from serving.recommender.candidates import SOURCES, Candidates
from serving.recommender.item_table import ItemTable

Degradation = Literal[
    "online_store_unavailable",  # Redis did not answer: the request had no user features
    "unknown_user",  # nothing is known of the user: attributes and history are missing
    "no_history",  # the user has no positive event yet
    "seen_truncated",  # the user has seen more items than are kept: the oldest may come again
    "few_candidates",  # fewer than k candidates were allowed: others fill it, if there are any
    "ranker_unavailable",  # the ranker failed: the two towers order the list
    "ranker_skipped",  # no time was left to rank: the two towers order the list
    "retrieval_unavailable",  # candidates failed or no time was left: the list has popular items
    # A view's values were past its TTL and counted as missing:
    "stale_user_profile",
    "stale_user_history",
    "stale_user_recent",
    "stale_user_activity",
    "stale_user_affinity",
    "stale_user_seen",
]
"""Every word that ``degraded`` may hold, but for those of declared features.

``stale_<view>`` where a declared view's values were past its TTL, ``missing_<feature>`` where a
release reads a feature that is registered no more, or the function of an on-demand feature failed.
"""


@dataclass
class Recommendation:
    """One request's list, best first.

    ``items`` int32 ``[m]`` codes, ``scores`` float32 ``[m]``, ``sources`` the names of the sources
    that proposed each item. ``removed`` counts filtered candidates by reason. ``rows`` int64
    ``[r]`` are the rows of the first ``r`` items among all ranked candidates; the items after those
    were not ranked.
    """

    items: Int32Array
    scores: Float32Array
    sources: list[list[str]]
    degraded: list[Degradation | str]
    removed: dict[str, int] = field(default_factory=dict)
    rows: Int64Array = field(default_factory=lambda: np.zeros(0, dtype=np.int64))


@dataclass(frozen=True)
class Ranked:
    """Candidates with the ranker's inputs and outputs, for ``explain`` and the impression log.

    ``pairs`` has one entry per request; ``scores`` float32 ``[n]`` and ``probabilities`` float32
    ``[n, T]`` are of all candidates. ``degradation`` says why the ranker did not order them.
    """

    candidates: Candidates
    pairs: list[PairRows]
    scores: Float32Array
    probabilities: Float32Array
    degradation: Degradation | None = None

    def rows(
        self, request: int, rows: Int64Array, items: ItemTable
    ) -> tuple[Float32Array, Int32Array]:
        """Return the ranker's inputs, numeric and categorical, of some of a request's candidates.

        Args:
            request: index of the request.
            rows: int64 ``[m]``, rows among all candidates.
            items: the item table that they were ranked with.

        """
        return self.pairs[request][rows - self.candidates.offsets[request]].join(items.rows)


SOURCE_NAMES = [
    [name for bit, name in enumerate(SOURCES) if bits >> bit & 1]
    for bits in range(1 << len(SOURCES))
]
"""Names of the sources by every pattern of their bits."""
