"""Hydration: what links a user and a candidate, and the ranker's rows of both."""

from __future__ import annotations

import numpy as np

from feature_repo.encoding import Codes, Floats
from ranking.rows import CROSS, PairRows, pair_rows
from serving.candidates import RECENT, Candidates
from serving.catalogue import ItemTable
from serving.users import UserBatch


class Hydrator:
    """Builds the ranker's inputs of candidates; training sets and serving both come through here."""

    def __init__(self, vectors: Floats) -> None:
        """Keep the unit item vectors, float32 ``[N, D]``."""
        self._vectors = vectors

    def hydrate(
        self, users: UserBatch, vectors: Floats, candidates: Candidates, items: ItemTable
    ) -> tuple[Floats, Codes]:
        """Return numeric float32 ``[n, F]`` (NaN: missing) and categorical int32 ``[n, C]`` of all candidates.

        ``vectors`` float32 ``[B, D]`` are the users' unit vectors.
        """
        pairs = [self.pairs(users, row, vectors[row], candidates, items).join(items.rows) for row in range(len(users))]
        numeric, categorical = zip(*pairs, strict=True)
        return np.concatenate(numeric), np.concatenate(categorical)

    def pairs(self, users: UserBatch, row: int, vector: Floats, candidates: Candidates, items: ItemTable) -> PairRows:
        """Return the candidates of one request beside its user; ``vector`` float32 ``[D]`` is the user's."""
        rows = candidates.rows(row)
        item = candidates.item[rows]
        near = self._vectors[item]
        cross = np.empty((len(item), len(CROSS)), dtype=np.float32)
        cross[:, 0] = near @ vector
        cross[:, 1] = candidates.tower_rank[rows]
        cross[:, 2:4] = candidates.similar[rows]
        cross[:, 4:7] = self._cosines(near, users.context.history[row, :RECENT])
        cross[:, 7] = users.category_shares[row][items.categories[item]].sum(axis=1)
        return pair_rows(users.rows, row, items.rows, item, cross)

    def _cosines(self, near: Floats, recent: Codes) -> Floats:
        recent = recent[recent > 0]
        if not len(recent):
            return np.full((len(near), 3), np.nan, dtype=np.float32)
        cosine = near @ self._vectors[recent].T
        return np.stack([cosine[:, 0], cosine[:, :5].mean(axis=1), cosine.max(axis=1)], axis=1)
