"""Candidates: the union of what several sources propose for each request."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from feature_repo import columns as c
from feature_repo.arrays import BoolArray, Float32Array, Float64Array, Int32Array, Int64Array
from ranking.compiled import compiled
from serving.recommender.item_table import ItemTable

SOURCES = ("two_tower", "similar", "popular", "trending", "new", "backfill")
"""Every candidate source; a candidate's ``sources`` bit ``i`` is set if source ``i`` proposed it."""

_STATES_KEPT = 1_000

# FAISS gives these classes keyword arguments when it is imported, which its type hints do not know.
_search_parameters: Any = faiss.SearchParameters
_inverted_search_parameters: Any = faiss.SearchParametersIVF

RECENT = 10
"""How many of the newest history items the similar-items source starts from."""


class CandidateQuota(BaseModel):
    """How many candidates each source may propose.

    By default those that pay on the data sets of docs/results.md: what is co-visited, popular or
    trending and belongs on top is found by the towers too.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    two_tower: int = Field(default=430, ge=1)
    similar: int = Field(default=0, ge=0)
    popular: int = Field(default=0, ge=0)
    trending: int = Field(default=0, ge=0)
    new: int = Field(default=70, ge=0)

    @classmethod
    def parse(cls, given: Sequence[str]) -> CandidateQuota:
        """Read ``source=number`` pairs; sources that are not given have their default.

        Raises:
            ValueError: an unknown source, or no number that it may have.

        """
        pairs = dict(pair.partition("=")[::2] for pair in given)
        try:
            return cls.model_validate(pairs)
        except ValidationError as error:
            wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise ValueError(
                f"{wrong} (write source=number; sources: {', '.join(cls.model_fields)})"
            ) from None


@dataclass(frozen=True)
class Candidates:
    """Candidates of ``B`` requests end to end: request ``b`` has rows ``offsets[b]:offsets[b + 1]``.

    ``item`` int32 ``[n]`` codes, ``sources`` uint8 ``[n]`` bits, ``tower_rank`` float32 ``[n]``
    place among the tower's candidates (NaN: not among them), ``similar`` float32 ``[n, 2]``
    co-visitation with the recent items and with the newest one.
    """

    item: Int32Array
    sources: npt.NDArray[np.uint8]
    tower_rank: Float32Array
    similar: Float32Array
    offsets: Int64Array

    @property
    def request(self) -> Int64Array:
        """Which request each row belongs to, int64 ``[n]``."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    def rows(self, request: int) -> slice:
        """Return the rows of a request."""
        return slice(int(self.offsets[request]), int(self.offsets[request + 1]))


class ItemFilter:
    """A part of the catalogue for the search to stay within; made once for a rule, used by many requests."""

    def __init__(self, mask: BoolArray) -> None:
        """``mask`` bool ``[N]``: which items are in it."""
        self.share = float(mask.mean())
        # The index has no row for item 0.
        self._bits = np.packbits(mask[1:], bitorder="little")
        self._selector = faiss.IDSelectorBitmap(len(self._bits), faiss.swig_ptr(self._bits))

    def has(self, codes: Int64Array) -> BoolArray:
        """Return which items are in it, bool ``[n]``."""
        rows = codes - 1
        return np.asarray(self._bits[rows >> 3] >> (rows & 7) & 1, dtype=np.bool_)

    def parameters(self, index: faiss.Index) -> Any:
        """Return what makes the index search in this part only; of inverted lists the more, the narrower it is."""
        if not isinstance(index, faiss.IndexIVF):
            return _search_parameters(sel=self._selector)
        lists = min(index.nlist, int(np.ceil(index.nprobe / max(self.share, 1e-6))))
        return _inverted_search_parameters(sel=self._selector, nprobe=lists)


class Retriever:
    """All candidate sources of a release."""

    def __init__(
        self,
        index: faiss.Index,
        neighbours: Int32Array,
        similarities: Float32Array,
        quota: CandidateQuota,
    ) -> None:
        self.index = index
        self.neighbours = np.asarray(neighbours)  # views without the costs of np.memmap's indexing
        self.similarities = np.asarray(similarities)
        self.quota = quota
        self._recency = (0.8 ** np.arange(RECENT)).astype(np.float32)
        self._desk = _Desk(len(neighbours))
        self._added: Float32Array | None = None

    def with_items(
        self, neighbours: Int32Array, similarities: Float32Array, added: Float32Array
    ) -> Retriever:
        """Return the same sources with added items, which the index has not.

        Args:
            neighbours: int32 ``[N + A, n]``, those of all items.
            similarities: float32 ``[N + A, n]``.
            added: float32 ``[A, D]``, unit vectors of the added items.

        """
        made = Retriever(self.index, neighbours, similarities, self.quota)
        made._added = added
        return made

    def retrieve(
        self,
        vectors: Float32Array,
        history: Int32Array,
        items: ItemTable,
        time: Float64Array,
        prefilters: Sequence[ItemFilter | None] | None = None,
    ) -> Candidates:
        """Return candidates of ``B`` requests.

        Args:
            vectors: user vectors float32 ``[B, D]``.
            history: int32 ``[B, H]`` newest first.
            items: the item table as of the requests.
            time: float64 ``[B]`` epoch seconds.
            prefilters: the items that a request's tower candidates are to be among; None: among all.

        """
        near = self._nearest(
            np.ascontiguousarray(vectors, dtype=np.float32), prefilters or [None] * len(vectors)
        )
        parts = [
            self._merge(near[b], history[b], self._static(items, float(time[b])))
            for b in range(len(vectors))
        ]
        sizes = np.cumsum([0, *(len(part[0]) for part in parts)])
        item, sources, rank, similar = (
            np.concatenate(column) for column in zip(*parts, strict=True)
        )
        return Candidates(item, sources, rank, similar, sizes.astype(np.int64))

    def _nearest(
        self, vectors: Float32Array, prefilters: Sequence[ItemFilter | None]
    ) -> list[Int64Array]:
        """Return the codes nearest to each user vector, best first; 0 where FAISS found fewer than were asked for."""
        if not any(prefilters):
            return list(self.nearest(vectors, self.quota.two_tower)[1])
        pairs = zip(vectors, prefilters, strict=True)
        return [
            self.nearest(vector[None, :], self.quota.two_tower, among)[1][0]
            for vector, among in pairs
        ]

    def nearest(
        self, vectors: Float32Array, count: int, among: ItemFilter | None = None
    ) -> tuple[Float32Array, Int64Array]:
        """Return cosines and codes of the items nearest to unit vectors ``[B, D]``, best first, ``[B, count]`` each.

        They are fewer if there are fewer items; a code is 0 where too few were found ``among``
        some.
        """
        parameters = among.parameters(self.index) if among else None
        cosines, rows = self.index.search(vectors, min(count, self.index.ntotal), params=parameters)
        if self._added is None:
            return cosines, rows + 1
        more = np.arange(len(self._added)) + self.index.ntotal + 1
        near = vectors @ self._added.T
        if among:
            near[:, ~among.has(more)] = -np.inf
        cosines = np.concatenate([np.where(rows < 0, -np.inf, cosines), near], axis=1)
        codes = np.concatenate([rows + 1, np.broadcast_to(more, near.shape)], axis=1)
        order = np.argsort(-cosines, axis=1, kind="stable")[:, :count]
        cosines, codes = np.take_along_axis(cosines, order, 1), np.take_along_axis(codes, order, 1)
        return cosines, np.where(np.isinf(cosines), 0, codes)

    def prepare(self, items: ItemTable, time: float) -> None:
        """Work out, not on a request's time, what is the same for every request of a moment."""
        self._static(items, time)

    def _static(self, items: ItemTable, time: float) -> tuple[Int32Array, npt.NDArray[np.uint8]]:
        """Return the static lists of a moment end to end, with the bit of the source that each item is from.

        They are made once for as long as nothing comes or goes.
        """
        known = items.memo.setdefault(self.quota, {})
        state = items.availability_state(time)
        if state not in known:
            if len(known) >= _STATES_KEPT:
                known.clear()
            lists = static_lists(items, self.quota, time)
            bits = [
                np.full(len(codes), 1 << SOURCES.index(name), np.uint8)
                for name, codes in lists.items()
            ]
            known[state] = np.concatenate(list(lists.values())), np.concatenate(bits)
        found: tuple[Int32Array, npt.NDArray[np.uint8]] = known[state]
        return found

    def _merge(
        self,
        tower: Int64Array,
        history: Int32Array,
        static: tuple[Int32Array, npt.NDArray[np.uint8]],
    ) -> tuple[Int32Array, npt.NDArray[np.uint8], Float32Array, Float32Array]:
        """Return items in the order in which the sources first propose them, with their bits and scores."""
        recent = history[:RECENT]
        recent = recent[recent > 0]
        near, weight = self.neighbours[recent], self.similarities[recent]
        size = len(tower) + near.size + len(static[0])
        item, bits = np.empty(size, np.int32), np.empty(size, np.uint8)
        rank, similar = np.empty(size, np.float32), np.empty((size, 2), np.float32)
        most, place = self.quota.similar, self._desk.place
        count = _union(
            tower, near, weight, self._recency, most, *static, place, item, bits, rank, similar
        )
        return item[:count], bits[:count], rank[:count], similar[:count]


class _Desk(threading.local):
    """A thread's scratch array with a place for every item: looking up beats sorting by ten to one.

    ``place`` int32 ``[N]`` is all 0 between requests.
    """

    def __init__(self, size: int) -> None:
        self.place = np.zeros(size, dtype=np.int32)


@compiled
def _union(
    tower: Int64Array,
    near: Int32Array,
    weight: Float32Array,
    recency: Float32Array,
    most_similar: int,
    static: Int32Array,
    static_bits: npt.NDArray[np.uint8],
    place: Int32Array,
    item: Int32Array,
    bits: npt.NDArray[np.uint8],
    rank: Float32Array,
    similar: Float32Array,
) -> int:
    """Write the union of all sources into ``item``, ``bits``, ``rank`` and ``similar``, and return its size.

    Args:
        tower: codes best first, 0: FAISS found fewer.
        near: int32 ``[R, S]``, the items co-visited with each recent one, 0: none.
        weight: float32 ``[R, S]``, how much.
        recency: float32 ``[R]``, what the co-visitation with each recent item counts.
        most_similar: how many of the co-visited items are proposed.
        static: codes of the other sources.
        static_bits: their bits.
        place: int32 ``[N]`` of 0; so it is left.
        item: int32, with room for all of them.
        bits: uint8, likewise.
        rank: float32, likewise.
        similar: float32 ``[., 2]``, likewise.

    """
    # First every co-visited item with its two sums; of those that are not proposed in the end the
    # scores may count.
    pool, score, last = np.empty(near.size, np.int32), np.zeros(near.size), np.zeros(near.size)
    found = 0
    for one in range(near.shape[0]):
        for other in range(near.shape[1]):
            code, much = near[one, other], weight[one, other] * recency[one]
            if code == 0 or much <= 0.0:
                continue
            if place[code] == 0:
                pool[found] = code
                found += 1
                place[code] = found
            score[place[code] - 1] += much
            if one == 0:
                last[place[code] - 1] += weight[0, other]
    pool, best = pool[:found], np.argsort(-score[:found], kind="mergesort")
    for number in range(found):
        place[pool[number]] = -number - 1  # below 0: not among the candidates yet
    count = 0
    for source in range(3):
        length = (
            len(tower) if source == 0 else min(most_similar, found) if source == 1 else len(static)
        )
        for number in range(length):
            code = (
                tower[number]
                if source == 0
                else pool[best[number]]
                if source == 1
                else static[number]
            )
            bit = static_bits[number] if source == 2 else np.uint8(1 << source)
            if code == 0:
                continue
            if place[code] > 0:
                bits[place[code] - 1] |= bit
                continue
            item[count], bits[count] = code, bit
            rank[count] = np.log1p(np.float32(number)) if source == 0 else np.nan
            known = -place[code] - 1
            similar[count, 0] = score[known] if known >= 0 else 0.0
            similar[count, 1] = last[known] if known >= 0 else 0.0
            count += 1
            place[code] = count
    for number in range(found):
        place[pool[number]] = 0
    for number in range(count):
        place[item[number]] = 0
    return count


def static_lists(items: ItemTable, quota: CandidateQuota, time: float) -> dict[str, Int32Array]:
    """Return the sources that are the same for everybody: popular, trending and new items that can be had."""
    available = items.available(time)
    popular, trending = (
        items.count(c.events("30d")),
        items.count(c.events("7d")) + 1e-3 * items.count(c.events("30d")),
    )
    begin = np.where(
        np.isfinite(items.available_from), items.available_from, items.activity.first_event_at
    )
    begin = np.where(np.isfinite(begin), begin, -np.inf)
    return {
        "popular": top(np.where(available, popular, -np.inf), quota.popular),
        "trending": top(
            np.where(available, trending * np.exp(trend(items)), -np.inf), quota.trending
        ),
        "new": top(np.where(available, begin, -np.inf), quota.new),
    }


def trend(items: ItemTable) -> Float32Array:
    """Return each item's trend, log of its week's daily rate over its month's, float32 ``[N]``."""
    return items.count(c.TREND)


def top(values: npt.NDArray[Any], k: int) -> Int32Array:
    """Return the rows of the ``k`` highest finite values, best first, ties by row."""
    k = min(k, len(values))
    if k == 0:
        return np.zeros(0, dtype=np.int32)
    values = np.where(np.isfinite(values), values, -np.inf)
    least = np.partition(values, -k)[-k]
    above = np.flatnonzero(values > least)
    # Partitioning alone would let chance decide between equals at the edge.
    rows = np.concatenate([above, np.flatnonzero(values == least)[: k - len(above)]])
    rows = rows[np.lexsort((rows, -values[rows]))]
    best: Int32Array = rows[np.isfinite(values[rows])].astype(np.int32)
    return best
