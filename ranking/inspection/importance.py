"""What a ranker's order depends on: how much worse it gets when one column's values are mixed up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from feature_repo.arrays import Float32Array, Int32Array, Int64Array
from ranking.data import RankingData, RowSchema, group_starts
from ranking.metrics import ndcg_at_k
from ranking.models.scorer import CalibratedRanker
from ranking.models.trees import TreeRanker


@dataclass(frozen=True)
class Importance:
    """What one column is worth.

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
    k: int,
    repeats: int,
    seed: int,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> tuple[float, list[Importance]]:
    """Return NDCG@k as it is, and every column's importance, the largest drop first (Breiman 2001; Fisher et al. 2019).

    A column of items or pairs is permuted among the candidates of its request. Across requests, a
    row could get a value that no candidate of that request can have, and the drop would count the
    user's level as well, which moves all candidates alike. A column that has one value in every
    request (of the user or the moment) would stay what it is
    within requests: each request gets the value of another one. Such a column can only matter
        together with others.

    Columns that say nearly the same cover for each other: each alone looks unimportant.

    Args:
        ranker: what is asked.
        data: rows that it was not trained on, with their labels.
        k: places of a list that count.
        repeats: how many permutations, at least 2; every column gets the same ones.
        seed: of the permutations.
        progress: told how many columns are done, of how many.

    Raises:
        ValueError: no request has a positive row.

    """
    data = answered(data, ranker.schema)
    gains = data.wanted(ranker.schema)

    def ndcg() -> float:
        return ndcg_at_k(gains, ranker.score(data.numeric, data.categorical)[0], data.request, k)

    base = ndcg()
    starts, sizes, random = (
        group_starts(data.request),
        data.group_sizes(),
        np.random.default_rng(seed),
    )
    within = [np.lexsort((random.random(len(data)), data.request)) for _ in range(repeats)]
    across = [np.repeat(starts[random.permutation(len(starts))], sizes) for _ in range(repeats)]
    shares = ranker.ranker.gain() if isinstance(ranker.ranker, TreeRanker) else {}
    names, found = ranker.schema.numeric + ranker.schema.categorical, []
    for number, name in enumerate(names):
        column = _column(data, number)
        kept = column.copy()
        level = "across" if _is_of_request(kept, starts, sizes) else "within"
        drops = np.empty(repeats)
        for repeat, order in enumerate(across if level == "across" else within):
            column[:] = kept[order]
            drops[repeat] = base - ndcg()
        column[:] = kept
        found.append(
            Importance(name, float(drops.mean()), float(drops.std(ddof=1)), level, shares.get(name))
        )
        progress(number + 1, len(names))
    return base, sorted(found, key=lambda one: -one.drop)


def answered(data: RankingData, schema: RowSchema) -> RankingData:
    """Return a copy of the requests with a wanted item: no order makes a difference to the others.

    Raises:
        ValueError: there is none.

    """
    found = np.maximum.reduceat(data.wanted(schema), group_starts(data.request)) > 0
    if not found.any():
        raise ValueError("no request has a positive row")
    return data.take(np.flatnonzero(np.repeat(found, data.group_sizes())))


def _column(data: RankingData, number: int) -> Float32Array | Int32Array:
    """Return a view of a column, numeric ones first."""
    width = data.numeric.shape[1]
    return data.numeric[:, number] if number < width else data.categorical[:, number - width]


def _is_of_request(
    column: Float32Array | Int32Array,
    starts: npt.NDArray[np.intp],
    sizes: Int64Array,
) -> bool:
    first = np.repeat(column[starts], sizes)
    return bool(((column == first) | (np.isnan(column) & np.isnan(first))).all())
