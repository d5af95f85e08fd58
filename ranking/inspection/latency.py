"""How long rankers take for one request, side by side."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np

from ranking.data import RankingData
from ranking.models.scorer import CalibratedRanker
from ranking.rows import CROSS, ITEM_AGES, ItemRows, PairRows

_WARM_UP = 5


def one_request(
    data: RankingData, size: int, item_columns: tuple[int, int]
) -> tuple[PairRows, ItemRows]:
    """Take joined rows apart into one request of ``size`` candidates, as a server has it before it ranks.

    Args:
        data: rows; the first request is repeated until it has the size.
        size: how many candidates.
        item_columns: how many of the last numeric and of the last categorical columns are the
            item's.

    """
    rows = np.resize(np.flatnonzero(data.request == data.request[0]), size)
    numeric, categorical = data.numeric[rows], data.categorical[rows]
    pair, none = len(CROSS) + len(ITEM_AGES), np.zeros(size)
    of_item, coded = numeric.shape[1] - item_columns[0], categorical.shape[1] - item_columns[1]
    user = numeric[0, pair:of_item], categorical[0, :coded]
    pairs = PairRows(numeric[:, :pair].copy(), *user, np.arange(size, dtype=np.int32))
    return pairs, ItemRows(numeric[:, of_item:].copy(), categorical[:, coded:].copy(), none, none)


def latencies(
    rankers: Mapping[str, CalibratedRanker], pairs: PairRows, items: ItemRows, rounds: int
) -> dict[str, float]:
    """Return the median milliseconds of processor time that each ranker takes for one request, as it is served.

    Time on the processor is what the wall clock shows on a machine with nothing else to do;
    inference has one thread there (``FUNNEL_THREADS``). All rankers take turns in every round, so
    that full caches slow all of them alike.
    """
    score = {name: ranker.for_items(items) for name, ranker in rankers.items()}
    taken: dict[str, list[float]] = {name: [] for name in rankers}
    for number in range(_WARM_UP + rounds):
        for name, run in score.items():
            start = time.thread_time()
            run(pairs)
            if number >= _WARM_UP:
                taken[name].append(time.thread_time() - start)
    return {name: float(np.median(seconds)) * 1e3 for name, seconds in taken.items()}
