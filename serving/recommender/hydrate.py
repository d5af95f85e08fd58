"""Hydration: what links a user and a candidate, and the ranker's rows of both."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from feature_repo.arrays import Float32Array, Float64Array, Int32Array
from feature_repo.request_time import SECONDS_PER_DAY
from ranking.compiled import compiled, dot
from ranking.rows import PAIR_COLUMNS, PairRows
from serving.recommender.candidates import RECENT, Candidates
from serving.recommender.codec import Codec
from serving.recommender.deadline import NEVER, Deadline
from serving.recommender.item_table import ItemTable
from serving.recommender.on_demand import OnDemandFeatures, Pairs
from serving.recommender.users import UserBatch

_NEWEST = 5
"""How many of the newest history items ``cosine_recent`` is the mean of."""

_CACHE_LINE = 16
"""Float32 numbers in a line of the processor's cache."""


class Hydrator:
    """Builds the ranker's inputs of candidates, for training sets and for serving."""

    def __init__(self, vectors: Float32Array, codec: Codec) -> None:
        """``vectors``: unit item vectors, float32 ``[N, D]``."""
        self._vectors = vectors
        self._declared_vectors = len(codec.vectors)
        built = len(codec.all_pair_numeric) - len(codec.on_demand_features)
        self._kept = codec.kept(codec.all_pair_numeric[:built])
        self._on_demand = OnDemandFeatures(codec)

    def hydrate(
        self, users: UserBatch, vectors: Float32Array, candidates: Candidates, items: ItemTable
    ) -> tuple[Float32Array, Int32Array]:
        """Return the ranker's rows of all candidates.

        Args:
            users: ``B`` users.
            vectors: their unit vectors, float32 ``[B, D]``.
            candidates: ``n`` candidates of all of them.
            items: the item table.

        Returns:
            numeric float32 ``[n, F]`` (NaN: missing) and categorical int32 ``[n, C]``.

        """
        rows = [pair.join(items.rows) for pair in self.pairs(users, vectors, candidates, items)]
        return np.concatenate([row[0] for row in rows]), np.concatenate([row[1] for row in rows])

    def pairs(
        self,
        users: UserBatch,
        vectors: Float32Array,
        candidates: Candidates,
        items: ItemTable,
        *,
        deadline: Deadline = NEVER,
    ) -> list[PairRows]:
        """Return each request's user beside its candidates; arguments as of ``hydrate``.

        ``deadline``: of the requests; an on-demand function that makes them late is left out.
        """
        pairs = [
            self._pairs_of_one(users, row, vectors[row], candidates=candidates, items=items)
            for row in range(len(users))
        ]
        if not self._on_demand.width:
            return pairs
        return [
            self._with_on_demand(pair, Pairs(users, row, pair.item, items), deadline)
            for row, pair in enumerate(pairs)
        ]

    def _with_on_demand(self, rows: PairRows, pairs: Pairs, deadline: Deadline) -> PairRows:
        """Return a user's pairs with the features that are computed of both."""
        first = rows.pair.shape[1]
        pair = np.empty((len(rows), first + self._on_demand.width), dtype=np.float32)
        pair[:, :first] = rows.pair
        missing = self._on_demand.write(pair[:, first:], pairs, deadline)
        return replace(rows, pair=pair, missing=missing)

    def _pairs_of_one(
        self,
        users: UserBatch,
        row: int,
        vector: Float32Array,
        *,
        candidates: Candidates,
        items: ItemTable,
    ) -> PairRows:
        """Return the candidates of the user at ``row``, whose vector is float32 ``[D]``."""
        rows = candidates.rows(row)
        codes = candidates.item[rows]
        recent = users.context.history[row, :RECENT]

        # Columns as in CROSS and ITEM_AGES, float32 [n, P].
        columns = PAIR_COLUMNS + 3 * self._declared_vectors
        pair = np.empty((len(codes), columns), dtype=np.float32)
        pair[:, 1] = candidates.tower_rank[rows]
        pair[:, 2:4] = candidates.similar[rows]
        _write_cosines(pair, codes, vector, self._vectors, self._vectors[recent[recent > 0]])
        _write_shares_and_ages(
            pair,
            codes,
            users.category_shares[row],
            items.categories,
            items.rows.first_event_at,
            items.rows.last_event_at,
            float(users.context.time[row]),
        )
        for number, declared in enumerate(items.activity.vectors):
            first = PAIR_COLUMNS + 3 * number
            known = recent[declared[recent].any(axis=1)]
            _write_similarities(pair, first, codes, declared, declared[known])
        return PairRows(
            pair[:, self._kept], users.rows.numeric[row], users.rows.categorical[row], codes
        )


# Numba calls take positional arguments only, hence the long lists below.


@compiled
def _write_cosines(  # noqa: PLR0917
    pair: Float32Array,
    codes: Int32Array,
    user: Float32Array,
    vectors: Float32Array,
    recent: Float32Array,
) -> None:
    """Write items' cosines with the user (column 0) and with the user's recent items (4 to 6).

    Args:
        pair: float32 ``[n, P]``, written.
        codes: int32 ``[n]``, the items.
        user: float32 ``[D]``, the user's vector.
        vectors: float32 ``[N, D]``, the vectors of all items.
        recent: float32 ``[R, D]``, those of the recent items, newest first.

    """
    # Touch every line of the items' vectors, so that memory is waited for once, for many rows at a
    # time; the products below would wait at every row. Writing the sum keeps the reads.
    for row in range(len(codes)):
        pair[row, 0] = 0.0
        for start in range(0, vectors.shape[1], _CACHE_LINE):
            pair[row, 0] += vectors[codes[row], start]

    for row in range(len(codes)):
        vector = vectors[codes[row]]
        pair[row, 0] = dot(vector, user)
        _write_similarity(pair, row, 4, vector, recent)


@compiled
def _write_similarities(  # noqa: PLR0917
    pair: Float32Array,
    first: int,
    codes: Int32Array,
    vectors: Float32Array,
    recent: Float32Array,
) -> None:
    """Write items' cosines with recent items by vectors that are 0 where missing.

    Args:
        pair: float32 ``[n, P]``, columns ``first`` to ``first + 2`` are written.
        first: the first column.
        codes: int32 ``[n]``, the items.
        vectors: float32 ``[N, D]``, the vectors of all items.
        recent: float32 ``[R, D]``, those of the recent items that have one, newest first.

    """
    for row in range(len(codes)):
        vector = vectors[codes[row]]
        if np.any(vector):
            _write_similarity(pair, row, first, vector, recent)
        else:
            pair[row, first : first + 3] = np.nan


@compiled
def _write_similarity(  # noqa: PLR0917
    pair: Float32Array, row: int, first: int, vector: Float32Array, recent: Float32Array
) -> None:
    """Write a vector's cosines with the newest item, the newest five (mean) and the nearest."""
    pair[row, first : first + 3] = np.nan
    total = best = np.float32(0.0)
    for number in range(len(recent)):
        cosine = dot(vector, recent[number])
        if number == 0:
            pair[row, first] = cosine
        if number < _NEWEST:
            total += cosine
        best = cosine if number == 0 else max(best, cosine)
    if len(recent):
        pair[row, first + 1] = total / np.float32(min(len(recent), _NEWEST))
        pair[row, first + 2] = best


@compiled
def _write_shares_and_ages(  # noqa: PLR0917
    pair: Float32Array,
    codes: Int32Array,
    shares: Float32Array,
    categories: Int32Array,
    first_event_at: Float64Array,
    last_event_at: Float64Array,
    time: float,
) -> None:
    """Write the user's shares of the items' categories (column 7) and the items' ages (8 and 9).

    Args:
        pair: float32 ``[n, P]``, written.
        codes: int32 ``[n]``, the items.
        shares: float32 ``[K]``, the user's share of each category.
        categories: int32 ``[N, G]``, the categories of all items.
        first_event_at: float64 ``[N]``, epoch seconds, NaN: no event.
        last_event_at: float64 ``[N]``, likewise.
        time: of the request, epoch seconds.

    """
    for row in range(len(codes)):
        code = codes[row]
        share = np.float32(0.0)
        for column in range(categories.shape[1]):
            share += shares[categories[code, column]]
        pair[row, 7] = share
        pair[row, 8] = (time - first_event_at[code]) / SECONDS_PER_DAY
        pair[row, 9] = (time - last_event_at[code]) / SECONDS_PER_DAY
