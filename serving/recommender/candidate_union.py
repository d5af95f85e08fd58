"""The union of all candidate sources of one request, compiled."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from feature_repo.arrays import Float32Array, Float64Array, Int32Array, Int64Array
from ranking.compiled import compiled

SourceBits = npt.NDArray[np.uint8]
"""Bits of candidate sources: the tower has bit 0, co-visited items bit 1."""


class _Pool(NamedTuple):
    """``P`` co-visited items, each once.

    ``items`` int32 ``[P]``; ``total`` float64 ``[P]``, summed over the recent items by recency;
    ``newest`` float64 ``[P]``, of the newest item; ``order`` int64 ``[P]``, most similar first.
    """

    items: Int32Array
    total: Float64Array
    newest: Float64Array
    order: Int64Array


@compiled
def _pool_of(
    near: Int32Array, similarity: Float32Array, recency: Float32Array, slots: Int32Array
) -> _Pool:
    """Sum the similarities of each co-visited item; leave 1 + its index in ``slots``."""
    items = np.empty(near.size, np.int32)
    total = np.zeros(near.size)
    newest = np.zeros(near.size)
    size = 0
    for recent in range(near.shape[0]):
        for number in range(near.shape[1]):
            code = near[recent, number]
            weight = similarity[recent, number] * recency[recent]
            if code == 0 or weight <= 0.0:
                continue
            if slots[code] == 0:
                items[size] = code
                size += 1
                slots[code] = size
            total[slots[code] - 1] += weight
            if recent == 0:
                newest[slots[code] - 1] += similarity[0, number]
    order = np.argsort(-total[:size], kind="mergesort")
    return _Pool(items[:size], total, newest, order)


@compiled
def union_of_sources(  # noqa: PLR0917 - compiled functions take positional arguments only
    tower: Int64Array,
    near: Int32Array,
    similarity: Float32Array,
    recency: Float32Array,
    limit: int,
    static: Int32Array,
    static_sources: SourceBits,
    slots: Int32Array,
) -> tuple[Int32Array, SourceBits, Float32Array, Float32Array]:
    """Return the union of all sources: items, sources, tower ranks and similarities.

    Args:
        tower: int64 ``[T]`` codes, best first (0: FAISS found fewer).
        near: int32 ``[R, S]``, the items co-visited with each recent item (0: none).
        similarity: float32 ``[R, S]``, how strongly.
        recency: float32 ``[R]`` or longer, the weight of each recent item.
        limit: how many co-visited items may be proposed.
        static: int32 ``[n]`` codes, the items that are proposed to everybody.
        static_sources: uint8 ``[n]``, who proposes them.
        slots: int32 ``[N]`` of 0; left so.

    """
    # Pool the co-visited items. Those that are not proposed in the end still give their
    # similarities to the other sources' items. Their slots are below 0: not a candidate yet.
    pool = _pool_of(near, similarity, recency, slots)
    for number in range(len(pool.items)):
        slots[pool.items[number]] = -number - 1

    size = len(tower) + len(pool.items) + len(static)
    item = np.empty(size, np.int32)
    sources = np.empty(size, np.uint8)
    rank = np.empty(size, np.float32)
    similar = np.empty((size, 2), np.float32)

    # Take the sources' proposals in turn: tower, co-visited items, static items. The slot of a
    # candidate is 1 + its row.
    count = 0
    for source in range(3):
        if source == 0:
            length = len(tower)
        elif source == 1:
            length = min(limit, len(pool.items))
        else:
            length = len(static)

        for number in range(length):
            if source == 0:
                code = np.int64(tower[number])
            elif source == 1:
                code = np.int64(pool.items[pool.order[number]])
            else:
                code = np.int64(static[number])
            if code == 0:
                continue

            bit = static_sources[number] if source == 2 else np.uint8(1 << source)
            if slots[code] > 0:
                sources[slots[code] - 1] |= bit
                continue

            item[count] = code
            sources[count] = bit
            rank[count] = np.log1p(np.float32(number)) if source == 0 else np.nan
            pooled = -slots[code] - 1
            similar[count, 0] = pool.total[pooled] if pooled >= 0 else 0.0
            similar[count, 1] = pool.newest[pooled] if pooled >= 0 else 0.0
            count += 1
            slots[code] = count

    # Leave the slots as they were.
    for number in range(len(pool.items)):
        slots[pool.items[number]] = 0
    for number in range(count):
        slots[item[number]] = 0
    return item[:count], sources[:count], rank[:count], similar[:count]
