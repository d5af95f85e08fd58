"""Hydration: what links a user and a candidate, and the ranker's rows of both."""

from __future__ import annotations

import numpy as np

from feature_repo.encoding import Codes, Floats
from ranking.rows import CROSS, build_rows
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
        item = candidates.item
        cross = np.empty((len(item), len(CROSS)), dtype=np.float32)
        cross[:, 1] = candidates.tower_rank
        cross[:, 2:4] = candidates.similar
        for row in range(len(users)):
            rows = slice(candidates.offsets[row], candidates.offsets[row + 1])
            near = self._vectors[item[rows]]
            cross[rows, 0] = near @ vectors[row]
            cross[rows, 4:7] = self._cosines(near, users.context.history[row, :RECENT])
            cross[rows, 7] = users.category_shares[row][items.categories[item[rows]]].sum(axis=1)
        return build_rows(users.rows, items.rows, candidates.request, item, cross)

    def _cosines(self, near: Floats, recent: Codes) -> Floats:
        recent = recent[recent > 0]
        if not len(recent):
            return np.full((len(near), 3), np.nan, dtype=np.float32)
        cosine = near @ self._vectors[recent].T
        return np.stack([cosine[:, 0], cosine[:, :5].mean(axis=1), cosine.max(axis=1)], axis=1)
