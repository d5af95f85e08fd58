"""Permutation importance: how much worse a ranker orders when one column's values are shuffled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from feature_repo.arrays import Float32Array, Int32Array, Int64Array
from ranking.data import RankingData, group_starts
from ranking.metrics import ndcg_at_k
from ranking.models.scorer import CalibratedRanker
from ranking.models.trees import TreeRanker
from ranking.row_schema import RowSchema


@dataclass(frozen=True)
class Importance:
    """How much the order depends on one column.

    Attributes:
        name: of the column.
        drop: how much NDCG@k falls when the column is permuted, mean over repeats; below 0: it does
            harm.
        spread: standard deviation of the drop over repeats.
        permuted: ``within`` requests, or ``across`` them.
        gain: share of the gain of all splits, of boosters; else None.

    """

    name: str
    drop: float
    spread: float
    permuted: str
    gain: float | None


def permutation_importance(
    ranker: CalibratedRanker,
    data: RankingData,
    *,
    k: int,
    repeats: int,
    seed: int,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> tuple[float, list[Importance]]:
    """Return NDCG@k as it is, and every column's importance, the largest drop first.

    Breiman 2001; Fisher et al. 2019. A column of items or pairs is permuted among the candidates of
    its request. Across requests, a row could get a value that no candidate of that request can
    have, and the drop would count the user's level as well, which moves all candidates alike.

    A column that has one value in every request, of the user or the time, is permuted across
    requests: each gets the value of another. It can only matter together with other columns.

    Columns that say nearly the same cover for each other: each alone looks unimportant.

    Args:
        ranker: what is measured.
        data: rows that it was not trained on, with their labels.
        k: length of a list.
        repeats: number of permutations, at least 2; every column gets the same ones.
        seed: of the permutations.
        progress: called with the number of columns done and of all columns.

    Raises:
        ValueError: no request has a positive row.

    """
    data = with_relevant_rows(data, ranker.schema)
    gains = data.relevance(ranker.schema)

    def ndcg() -> float:
        return ndcg_at_k(gains, ranker.score(data.numeric, data.categorical)[0], data.request, k)

    base = ndcg()
    permutations = _Permutations.draw(data, repeats, seed)
    shares = ranker.ranker.gain() if isinstance(ranker.ranker, TreeRanker) else {}
    names = ranker.schema.numeric + ranker.schema.categorical
    importances = []
    for number, name in enumerate(names):
        column = _column(data, number)
        original = column.copy()
        level = "across" if permutations.is_of_request(original) else "within"
        drops = np.empty(repeats)
        for repeat, order in enumerate(permutations.orders[level]):
            column[:] = original[order]
            drops[repeat] = base - ndcg()
        column[:] = original
        mean, spread = float(drops.mean()), float(drops.std(ddof=1))
        importances.append(Importance(name, mean, spread, level, gain=shares.get(name)))
        progress(number + 1, len(names))
    return base, sorted(importances, key=lambda one: -one.drop)


@dataclass(frozen=True)
class _Permutations:
    """Orders of rows, int ``[n]`` each, by level; starts and sizes of the requests."""

    orders: dict[str, list[npt.NDArray[np.intp]]]
    starts: npt.NDArray[np.intp]
    sizes: Int64Array

    @classmethod
    def draw(cls, data: RankingData, repeats: int, seed: int) -> _Permutations:
        starts = group_starts(data.request)
        sizes = data.group_sizes()
        random = np.random.default_rng(seed)
        within = [np.lexsort((random.random(len(data)), data.request)) for _ in range(repeats)]
        across = [np.repeat(starts[random.permutation(len(starts))], sizes) for _ in range(repeats)]
        return cls({"within": within, "across": across}, starts, sizes)

    def is_of_request(self, column: Float32Array | Int32Array) -> bool:
        """Return whether a column, ``[n]``, has one value in every request."""
        first = np.repeat(column[self.starts], self.sizes)
        return bool(((column == first) | (np.isnan(column) & np.isnan(first))).all())


def with_relevant_rows(data: RankingData, schema: RowSchema) -> RankingData:
    """Return a copy of the requests with a relevant item; order is of no matter to the others.

    Raises:
        ValueError: there is none.

    """
    relevant = np.maximum.reduceat(data.relevance(schema), group_starts(data.request)) > 0
    if not relevant.any():
        raise ValueError("no request has a positive row")
    return data.take(np.flatnonzero(np.repeat(relevant, data.group_sizes())))


def _column(data: RankingData, number: int) -> Float32Array | Int32Array:
    """Return a view of a column, numeric ones first."""
    width = data.numeric.shape[1]
    return data.numeric[:, number] if number < width else data.categorical[:, number - width]
