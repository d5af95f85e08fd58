"""Hydration: what links a user and a candidate, and the ranker's rows of both."""

from __future__ import annotations

import numpy as np

from feature_repo.arrays import Float32Array, Float64Array, Int32Array
from feature_repo.request_time import SECONDS_PER_DAY
from ranking.compiled import compiled, dot
from ranking.rows import CROSS, ITEM_AGES, PairRows
from serving.recommender.candidates import RECENT, Candidates
from serving.recommender.item_table import ItemTable
from serving.recommender.users import UserBatch

_NEWEST = 5
"""How many of the newest history items ``cosine_recent`` is the mean of."""

_LINE = 16
"""Float32 numbers in a line of the processor's cache."""


class Hydrator:
    """Builds the ranker's inputs of candidates; training sets and serving both come through here."""

    def __init__(self, vectors: Float32Array) -> None:
        """Keep the unit item vectors, float32 ``[N, D]``."""
        self._vectors = vectors

    def hydrate(
        self, users: UserBatch, vectors: Float32Array, candidates: Candidates, items: ItemTable
    ) -> tuple[Float32Array, Int32Array]:
        """Return numeric float32 ``[n, F]`` (NaN: missing) and categorical int32 ``[n, C]`` of all candidates.

        ``vectors`` float32 ``[B, D]`` are the users' unit vectors.
        """
        pairs = [
            self.pairs(users, row, vectors[row], candidates, items).join(items.rows)
            for row in range(len(users))
        ]
        numeric, categorical = zip(*pairs, strict=True)
        return np.concatenate(numeric), np.concatenate(categorical)

    def pairs(
        self,
        users: UserBatch,
        row: int,
        vector: Float32Array,
        candidates: Candidates,
        items: ItemTable,
    ) -> PairRows:
        """Return the candidates of one request beside its user; ``vector`` float32 ``[D]`` is the user's."""
        rows, catalogue = candidates.rows(row), items.rows
        item, recent = candidates.item[rows], users.context.history[row, :RECENT]
        pair = np.empty((len(item), len(CROSS) + len(ITEM_AGES)), dtype=np.float32)
        pair[:, 1], pair[:, 2:4] = candidates.tower_rank[rows], candidates.similar[rows]
        near = self._vectors[recent[recent > 0]]
        _cosines(self._vectors, item, vector, near, pair)
        _lookups(
            item, users.category_shares[row], items.categories, catalogue.first_event_at, catalogue.last_event_at,
            float(users.context.time[row]), pair,
        )  # fmt: skip
        return PairRows(pair, users.rows.numeric[row], users.rows.categorical[row], item)


@compiled
def _cosines(
    vectors: Float32Array,
    item: Int32Array,
    user: Float32Array,
    recent: Float32Array,
    pair: Float32Array,
) -> None:
    """Write the cosines of items ``[n]`` with the user, with the newest item, the newest ones and the nearest one."""
    # Memory is waited for once here, for many rows at a time; between products it would be waited
    # for at every row.
    for row in range(len(item)):
        pair[row, 0] = 0.0
        for place in range(0, vectors.shape[1], _LINE):
            pair[row, 0] += vectors[item[row], place]
    for row in range(len(item)):
        vector = vectors[item[row]]
        pair[row, 0] = dot(vector, user)
        pair[row, 4:7] = np.nan
        total = best = np.float32(0.0)
        for number in range(len(recent)):
            cosine = dot(vector, recent[number])
            if number == 0:
                pair[row, 4] = cosine
            if number < _NEWEST:
                total += cosine
            best = cosine if number == 0 else max(best, cosine)
        if len(recent):
            pair[row, 5], pair[row, 6] = total / np.float32(min(len(recent), _NEWEST)), best


@compiled
def _lookups(
    item: Int32Array,
    shares: Float32Array,
    categories: Int32Array,
    first: Float64Array,
    last: Float64Array,
    time: float,
    pair: Float32Array,
) -> None:
    """Write the user's shares of the items' categories, and the items' ages in days."""
    for row in range(len(item)):
        code, share = item[row], np.float32(0.0)
        for place in range(categories.shape[1]):
            share += shares[categories[code, place]]
        pair[row, 7] = share
        pair[row, 8], pair[row, 9] = (
            (time - first[code]) / SECONDS_PER_DAY,
            (time - last[code]) / SECONDS_PER_DAY,
        )
