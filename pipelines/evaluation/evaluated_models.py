"""The models that need no fitting of their own: the release's funnel and towers, and lists by popularity and age."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt

from feature_repo import columns as c
from pipelines.evaluation.metrics import Ranks
from pipelines.evaluation.replayed_requests import (
    Lists,
    Model,
    PastRequests,
    Scorer,
    by_scores,
    first_items,
)
from serving.recommender.recommender import Recommendation, Recommender
from serving.recommender.users import UserBatch
from serving.releases.release import Release

DEEPEST = 500


class Funnel:
    """The release's recommender, as it is called while serving.

    ``degraded`` counts what it did without, ``candidate_ranks`` are the right item's ranks among
    the ranked candidates (-1: no source proposed it).
    """

    def __init__(self, recommender: Recommender, depth: int = DEEPEST) -> None:
        """``depth``: items a list, which are filled up from the whole catalogue if candidates do not suffice."""
        self._recommender, self._depth = recommender, depth
        self.degraded: Counter[str] = Counter()
        self._candidates: list[int] = []

    @property
    def candidate_ranks(self) -> Ranks:
        """Return the right items' ranks among the candidates, int64 ``[n]``."""
        return np.array(self._candidates, dtype=np.int64)

    def __call__(self, batch: PastRequests) -> Lists:
        """Return the lists of a batch's requests."""
        return self.lists(batch, batch.users)

    def lists(self, batch: PastRequests, users: UserBatch) -> Lists:
        """Return the lists of a batch's requests with other user features."""
        answers = self._recommender.recommend(users, batch.rules(self._depth), batch.items)
        ranks = []
        for answer, right in zip(answers, batch.requests.item, strict=True):
            ranks.append(_place(answer.items, right))
            self._note(answer, right)
        return Lists(
            np.array(ranks, dtype=np.int64), first_items(answer.items for answer in answers)
        )

    def _note(self, answer: Recommendation, right: int) -> None:
        proposed = [row for row, sources in enumerate(answer.sources) if sources != ["backfill"]]
        self._candidates.append(_place(answer.items[proposed], right))
        self.degraded.update(
            set(answer.degraded) - {"few_candidates"}
        )  # long lists are this evaluation's wish


def _place(items: npt.NDArray[Any], right: int) -> int:
    found = np.flatnonzero(items == right)
    return int(found[0]) if len(found) and right else -1


def simple_models(popularity: npt.NDArray[np.float64]) -> dict[str, Model]:
    """Return the models that know no user: chance, popularity before the cut and of late, and age; by name."""
    generator = np.random.default_rng(7)
    scorers: dict[str, Scorer] = {
        "random": lambda batch: generator.random(batch.allowed.shape),
        "popular": lambda _: popularity,
        "recently_popular": lambda batch: batch.items.count(c.events("30d")),
        "newest": _first_met,
    }
    return {name: by_scores(scorer) for name, scorer in scorers.items()}


def towers(release: Release) -> Model:
    """Return the exact search: all items by the cosine of user and item vector."""
    tower, vectors = release.recommender.tower, np.asarray(release.retrieval.vectors)
    return by_scores(lambda batch: tower(batch.users.context) @ vectors.T)


def _first_met(batch: PastRequests) -> npt.NDArray[np.float64]:
    """Return when each item came: when it could first be had, else when it was first met, else never."""
    begin = batch.items.available_from
    begin = np.where(np.isfinite(begin), begin, batch.items.activity.first_event_at)
    return np.where(np.isfinite(begin), begin, -np.finfo(np.float64).max)
