"""Past requests with what was known just before each, and the lists that a model makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse

from feature_repo.arrays import BoolArray, Int32Array, Int64Array
from pipelines.evaluation.metrics import K, Ranks
from pipelines.features.point_in_time import PointInTime
from pipelines.training.past_requests import (
    InteractionHistory,
    Requests,
    replay_columns,
    users_at,
)
from serving.recommender.candidates import top
from serving.recommender.filters import Filters, RequestRules
from serving.recommender.item_table import ItemTable
from serving.recommender.users import Columns, UserBatch
from serving.releases.release import Release


@dataclass(frozen=True)
class PastRequests:
    """``B`` requests of one day and what was known just before each.

    Attributes:
        rows: their rows among all requests, int64 ``[B]``.
        requests: the requests themselves.
        columns: the users' features by name.
        users: the users' features as arrays.
        items: the item table as of the day's midnight, with N rows.
        allowed: which items may be shown, bool ``[B, N]``.
        histories: 1 where the user had a positive event with the item, float32 ``[B, N]`` sparse.

    """

    rows: Int64Array
    requests: Requests
    columns: Columns
    users: UserBatch
    items: ItemTable
    allowed: BoolArray
    histories: sparse.csr_matrix

    def rules(self, k: int) -> list[RequestRules]:
        """Return what each request asks for: ``k`` items and nothing else."""
        return [RequestRules(k) for _ in range(len(self.requests))]


class Lists(NamedTuple):
    """A model's lists for ``n`` requests.

    Attributes:
        ranks: 0-based rank of the right item, int64 ``[n]``; -1: not in the list.
        top: the first ``K`` items, int32 ``[n, K]``; 0 where the list is shorter.

    """

    ranks: Ranks
    top: Int32Array

    @classmethod
    def join(cls, parts: Sequence[Lists]) -> Lists:
        """Put lists of several batches end to end."""
        empty = cls(np.zeros(0, dtype=np.int64), np.zeros((0, K), dtype=np.int32))
        return cls(*(np.concatenate(columns) for columns in zip(empty, *parts, strict=True)))


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
        yield PastRequests(
            rows=rows,
            requests=part,
            columns=columns,
            users=users,
            items=items,
            allowed=allowed_items(release.recommender.filters, items, users.seen, part),
            histories=histories(interactions, part, len(items)),
        )


def allowed_items(
    filters: Filters, items: ItemTable, seen: list[dict[str, Int32Array]], requests: Requests
) -> BoolArray:
    """Return which items were available, unseen, and not removed by a rule, bool ``[B, N]``."""
    rules = RequestRules(k=K)
    allowed = [
        filters.allowed(items, rules, seen=of_user, time=float(time))
        for of_user, time in zip(seen, requests.time, strict=True)
    ]
    return np.stack(allowed)


def histories(
    interactions: InteractionHistory, requests: Requests, catalogue: int
) -> sparse.csr_matrix:
    """Return which items each user interacted with before the request, float32 ``[B, N]``.

    Only positive events count.
    """
    pairs = zip(requests.user, requests.time, strict=True)
    items = [np.unique(interactions.positive_items(user, time)) for user, time in pairs]
    items = [codes[codes > 0] for codes in items]

    # Compressed rows: all codes end to end, and where each row ends.
    ends = np.cumsum([0, *map(len, items)])
    codes = np.concatenate([*items, np.zeros(0, dtype=np.int32)])
    ones = np.ones(len(codes), dtype=np.float32)
    return sparse.csr_matrix((ones, codes, ends), shape=(len(items), catalogue))


def by_scores(scorer: Scorer) -> Model:
    """Return the model that ranks all allowed items by score, equal ones by code."""
    return lambda batch: rank_all(scorer(batch), batch.allowed, batch.requests.item)


def rank_all(scores: npt.NDArray[Any], allowed: BoolArray, right: Int32Array) -> Lists:
    """Rank all allowed items.

    Args:
        scores: ``[B, N]`` or ``[N]``, the higher the better.
        allowed: bool ``[B, N]``.
        right: int32 ``[B]``, the right item's code; one that is not allowed has no rank.

    """
    scores = np.broadcast_to(scores, allowed.shape)
    rows = np.arange(len(right))

    # The right item's rank is the number of allowed items with a higher score, or an equal score
    # and a lower code, [B].
    own = scores[rows, right][:, None]
    lower_code = np.arange(scores.shape[1]) < right[:, None]
    better = (scores > own) | ((scores == own) & lower_code)
    ranks = np.where(allowed[rows, right], (better & allowed).sum(axis=1), -1)

    return Lists(
        ranks, first_items(top(values, K) for values in np.where(allowed, scores, -np.inf))
    )


def first_items(lists: Iterable[Int32Array]) -> Int32Array:
    """Return the first ``K`` items of each list, int32 ``[B, K]``, 0 where there are fewer."""
    rows = [codes[:K] for codes in lists]
    table = np.zeros((len(rows), K), dtype=np.int32)
    for row, codes in enumerate(rows):
        table[row, : len(codes)] = codes
    return table
