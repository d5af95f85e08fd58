"""Requests of the past with all that was known just before each, and the lists that a model makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse

from feature_repo.encoding import Codes
from pipelines.evaluation.metrics import K, Ranks
from pipelines.features.point_in_time import PointInTime
from pipelines.training.past_requests import InteractionHistory, Requests, replay_columns, users_at
from serving.recommender.candidates import top
from serving.recommender.filters import Filters, RequestRules
from serving.recommender.item_table import ItemTable
from serving.recommender.users import Columns, UserBatch
from serving.releases.release import Release

Allowed = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class PastRequests:
    """``B`` requests of one day and what was known just before each.

    ``rows`` int64 ``[B]``: their ranks among all requests; ``columns``: the users' features by
    name, ``users`` the same as arrays; ``items``: the item table as of the day's midnight;
    ``allowed`` bool ``[B, N]``: what may be shown; ``histories`` float32 ``[B, N]`` sparse, 1 where
    the user had taken the item up.
    """

    rows: npt.NDArray[np.int64]
    requests: Requests
    columns: Columns
    users: UserBatch
    items: ItemTable
    allowed: Allowed
    histories: sparse.csr_matrix

    def rules(self, k: int) -> list[RequestRules]:
        """Return what each request asks for: ``k`` items and nothing else."""
        return [RequestRules(k) for _ in range(len(self.requests))]


class Lists(NamedTuple):
    """A model's lists for ``n`` requests.

    ``ranks`` int64 ``[n]``: 0-based place of the right item, -1: not in the list. ``top`` int32
    ``[n, K]``: the first ``K`` items, 0 where the list is shorter.
    """

    ranks: Ranks
    top: Codes

    @classmethod
    def join(cls, parts: Sequence[Lists]) -> Lists:
        """Put lists of several batches end to end."""
        none = cls(np.zeros(0, dtype=np.int64), np.zeros((0, K), dtype=np.int32))
        return cls(*(np.concatenate(columns) for columns in zip(none, *parts, strict=True)))


Model = Callable[[PastRequests], Lists]
Scorer = Callable[[PastRequests], npt.NDArray[Any]]
"""Scores of all items, ``[B, N]`` or, where they are the same for everybody, ``[N]``."""


def replay_requests(
    release: Release, features: PointInTime, requests: Requests, interactions: InteractionHistory
) -> Iterator[PastRequests]:
    """Yield requests (in order of time) in small batches with what was known before each."""
    for rows, columns, items in replay_columns(requests, features, release.codec, release.items):
        part = requests[rows]
        users = users_at(release.reader, columns, part, interactions)
        allowed = allowed_items(release.recommender.filters, items, users.seen, part)
        yield PastRequests(
            rows, part, columns, users, items, allowed, histories(interactions, part, len(items))
        )


def allowed_items(
    filters: Filters, items: ItemTable, seen: list[dict[str, Codes]], requests: Requests
) -> Allowed:
    """Return which items could be had, were not seen, and no rule forbade, bool ``[B, N]``."""
    rules = RequestRules(k=K)
    return ~np.stack(
        [
            np.logical_or.reduce(list(filters.removals(items, rules, of, float(time)).values()))
            for of, time in zip(seen, requests.time, strict=True)
        ]
    )


def histories(
    interactions: InteractionHistory, requests: Requests, catalogue: int
) -> sparse.csr_matrix:
    """Return which items each user had taken up before the request, float32 ``[B, N]``."""
    pairs = zip(requests.user, requests.time, strict=True)
    met = [np.unique(interactions.positive_items(user, time)) for user, time in pairs]
    met = [codes[codes > 0] for codes in met]
    ends = np.cumsum([0, *map(len, met)])
    codes = np.concatenate([*met, np.zeros(0, dtype=np.int32)])
    ones = np.ones(len(codes), dtype=np.float32)
    return sparse.csr_matrix((ones, codes, ends), shape=(len(met), catalogue))


def by_scores(scorer: Scorer) -> Model:
    """Return the model that ranks all allowed items by score, equal ones by code."""
    return lambda batch: rank_all(scorer(batch), batch.allowed, batch.requests.item)


def rank_all(scores: npt.NDArray[Any], allowed: Allowed, right: Codes) -> Lists:
    """Rank all allowed items.

    Args:
        scores: ``[B, N]`` or ``[N]``, the higher the better.
        allowed: bool ``[B, N]``.
        right: int32 ``[B]``, the right item's code; one that is not allowed has no place.

    """
    scores, rows = np.broadcast_to(scores, allowed.shape), np.arange(len(right))
    mine = scores[rows, right][:, None]
    better = (scores > mine) | ((scores == mine) & (np.arange(scores.shape[1]) < right[:, None]))
    ranks = np.where(allowed[rows, right], (better & allowed).sum(axis=1), -1)
    return Lists(
        ranks, first_items(top(values, K) for values in np.where(allowed, scores, -np.inf))
    )


def first_items(lists: Iterable[Codes]) -> Codes:
    """Return the first ``K`` items of each list side by side, int32 ``[B, K]``, 0 where there are fewer."""
    rows = [codes[:K] for codes in lists]
    table = np.zeros((len(rows), K), dtype=np.int32)
    for row, codes in enumerate(rows):
        table[row, : len(codes)] = codes
    return table
