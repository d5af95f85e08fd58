"""Models that need no tuning: the release's funnel and towers, and simple orders of all items."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt

from feature_repo import columns as c
from feature_repo.arrays import Float64Array
from pipelines.evaluation.metrics import Ranks
from pipelines.evaluation.replayed_requests import (
    Lists,
    Model,
    PastRequests,
    Scorer,
    by_scores,
    first_items,
)
from serving.recommender.recommender import Recommender
from serving.recommender.results import Recommendation
from serving.recommender.users import UserBatch
from serving.releases.release import Release

DEEPEST = 500


class Funnel:
    """The release's recommender, called as it is while serving.

    Attributes:
        degraded: how often it answered without which part.

    """

    def __init__(self, recommender: Recommender, depth: int = DEEPEST) -> None:
        """Make lists of ``depth`` items, filled from the catalogue if candidates do not suffice."""
        self._recommender = recommender
        self._depth = depth
        self.degraded: Counter[str] = Counter()
        self._candidate_ranks: list[int] = []

    @property
    def candidate_ranks(self) -> Ranks:
        """Return the right items' ranks among the ranked candidates, int64 ``[n]``.

        -1: no source proposed the item.
        """
        return np.array(self._candidate_ranks, dtype=np.int64)

    def __call__(self, batch: PastRequests) -> Lists:
        """Return the lists of a batch's requests."""
        return self.lists(batch, batch.users)

    def lists(self, batch: PastRequests, users: UserBatch) -> Lists:
        """Return the lists of a batch's requests with other user features."""
        answers = self._recommender.recommend(users, batch.rules(self._depth), batch.items)
        ranks = []
        for answer, right in zip(answers, batch.requests.item, strict=True):
            ranks.append(_rank(answer.items, right))
            self._count(answer, right)
        return Lists(
            np.array(ranks, dtype=np.int64), first_items(answer.items for answer in answers)
        )

    def _count(self, answer: Recommendation, right: int) -> None:
        proposed = [row for row, sources in enumerate(answer.sources) if sources != ["backfill"]]
        self._candidate_ranks.append(_rank(answer.items[proposed], right))
        # Lists are long because this evaluation asks for them, not because candidates are few.
        self.degraded.update(set(answer.degraded) - {"few_candidates"})


def _rank(items: npt.NDArray[Any], right: int) -> int:
    """Return the 0-based rank of the right item (0: unknown) in a list; -1: not in it."""
    rows = np.flatnonzero(items == right)
    return int(rows[0]) if len(rows) and right else -1


def simple_models(popularity: Float64Array) -> dict[str, Model]:
    """Return the models that ignore the user, by name: chance, popularity, and age.

    Args:
        popularity: positive events before the cut, float64 ``[N]``.

    """
    generator = np.random.default_rng(7)
    scorers: dict[str, Scorer] = {
        "random": lambda batch: generator.random(batch.allowed.shape),
        "popular": lambda _: popularity,
        "recently_popular": lambda batch: batch.items.count(c.EVENTS_30D),
        "newest": _available_since,
    }
    return {name: by_scores(scorer) for name, scorer in scorers.items()}


def two_tower_search(release: Release) -> Model:
    """Return the exact search: all items by the cosine of user and item vector."""
    tower = release.recommender.tower
    vectors = np.asarray(release.retrieval.vectors)
    return by_scores(lambda batch: tower(batch.users.context) @ vectors.T)


def _available_since(batch: PastRequests) -> Float64Array:
    """Return when each item became available, else when it had its first event, float64 ``[N]``.

    Items with neither come last.
    """
    start = batch.items.available_from
    start = np.where(np.isfinite(start), start, batch.items.activity.first_event_at)
    return np.where(np.isfinite(start), start, -np.finfo(np.float64).max)
