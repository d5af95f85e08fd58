"""Processor time of rankers for one request, side by side."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np

from ranking.data import RankingData
from ranking.models.scorer import CalibratedRanker
from ranking.rows import PAIR_COLUMNS, ItemRows, PairRows

_WARM_UP = 5


def one_request(
    data: RankingData,
    size: int,
    item_columns: tuple[int, int],
    pair_columns: int = PAIR_COLUMNS,
) -> tuple[PairRows, ItemRows]:
    """Split joined rows into one request of ``size`` candidates, as a server has before it ranks.

    Args:
        data: rows; the first request is repeated until it has the size.
        size: number of candidates.
        item_columns: number of the last numeric and of the last categorical columns that are the
            item's.
        pair_columns: number of the first numeric columns that are of user and item together.

    """
    rows = np.resize(np.flatnonzero(data.request == data.request[0]), size)
    numeric, categorical = data.numeric[rows], data.categorical[rows]

    # Numeric columns: pair, user, item; categorical ones: user, item.
    item_start = numeric.shape[1] - item_columns[0]
    item_codes = categorical.shape[1] - item_columns[1]
    pairs = PairRows(
        pair=numeric[:, :pair_columns].copy(),
        user_numeric=numeric[0, pair_columns:item_start],
        user_categorical=categorical[0, :item_codes],
        item=np.arange(size, dtype=np.int32),
    )
    items = ItemRows(
        numeric=numeric[:, item_start:].copy(),
        categorical=categorical[:, item_codes:].copy(),
        first_event_at=np.zeros(size),
        last_event_at=np.zeros(size),
    )
    return pairs, items


def latencies(
    rankers: Mapping[str, CalibratedRanker], pairs: PairRows, items: ItemRows, rounds: int
) -> dict[str, float]:
    """Return each ranker's median processor time for one served request, in milliseconds.

    Processor time equals the wall clock's on an idle machine, where inference has one thread
    (``FUNNEL_THREADS``). Rankers take turns in every round, so that full caches slow all alike.
    """
    score = {name: ranker.for_items(items) for name, ranker in rankers.items()}
    seconds: dict[str, list[float]] = {name: [] for name in rankers}
    for number in range(_WARM_UP + rounds):
        for name, run in score.items():
            start = time.thread_time()
            run(pairs)
            if number >= _WARM_UP:
                seconds[name].append(time.thread_time() - start)
    return {name: float(np.median(times)) * 1e3 for name, times in seconds.items()}
