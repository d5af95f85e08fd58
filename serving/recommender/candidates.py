"""Candidates: the union of what several sources propose for each request."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import faiss
import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from feature_repo import columns as c
from feature_repo.arrays import BoolArray, Float32Array, Float64Array, Int32Array, Int64Array
from serving.recommender.candidate_union import SourceBits, union_of_sources
from serving.recommender.item_table import ItemTable

SOURCES = ("two_tower", "similar", "popular", "trending", "new", "backfill")
"""Every candidate source; bit ``i`` of a candidate's ``sources`` is that of source ``i``."""

_CACHED_STATES = 1_000

# FAISS gives these classes keyword arguments when it is imported, which its type hints do not know.
_search_parameters: Any = faiss.SearchParameters
_inverted_search_parameters: Any = faiss.SearchParametersIVF

FEW = 5_000
"""Largest number of items whose codes an item filter lists."""

RECENT = 10
"""Number of newest history items that the similar-items source starts from."""


class CandidateQuota(BaseModel):
    """The number of candidates that each source may propose.

    By default only the sources that pay on the data sets of docs/results.md: the towers find most
    relevant items that are co-visited, popular or trending too.
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
            ValueError: a source is unknown, or its number is not allowed.

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
    """Candidates of ``B`` requests end to end; request ``b`` has rows ``offsets[b:b + 2]``.

    ``item`` int32 ``[n]`` codes; ``sources`` uint8 ``[n]`` bits; ``tower_rank`` float32 ``[n]``,
    log of 1 + the rank among the tower's candidates (NaN: not among them); ``similar`` float32
    ``[n, 2]``, co-visitation with the recent items and with the newest one.
    """

    item: Int32Array
    sources: SourceBits
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
    """A part of the catalogue that a vector search stays within; many requests share one."""

    def __init__(self, mask: BoolArray) -> None:
        """``mask`` bool ``[N]``: which items are in it."""
        self.share = float(mask.mean())

        self.codes: Int32Array | None = None
        """The codes of the items, int32 ``[n]``, if they are at most ``FEW``."""
        if mask.sum() <= FEW:
            self.codes = np.flatnonzero(mask).astype(np.int32)

        # The index has no row for item 0.
        self._bits = np.packbits(mask[1:], bitorder="little")
        self._selector = faiss.IDSelectorBitmap(len(self._bits), faiss.swig_ptr(self._bits))

    def has(self, codes: Int64Array) -> BoolArray:
        """Return which items are in it, bool ``[n]``."""
        rows = codes - 1
        return np.asarray(self._bits[rows >> 3] >> (rows & 7) & 1, dtype=np.bool_)

    def parameters(self, index: faiss.Index) -> Any:
        """Return FAISS's search parameters; a narrower filter searches more inverted lists."""
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
        """Keep the sources.

        Args:
            index: of the unit item vectors; row ``r`` is item ``r + 1``.
            neighbours: int32 ``[N, S]``, the items co-visited with each item (0: none).
            similarities: float32 ``[N, S]``, how strongly.
            quota: how many candidates each source may propose.

        """
        self.index = index
        self.neighbours = np.asarray(neighbours)  # views without the costs of np.memmap's indexing
        self.similarities = np.asarray(similarities)
        self.quota = quota
        self._recency = (0.8 ** np.arange(RECENT)).astype(np.float32)
        self._scratch = _Scratch(len(neighbours))
        self._added: Float32Array | None = None

    def with_items(
        self, neighbours: Int32Array, similarities: Float32Array, added: Float32Array
    ) -> Retriever:
        """Return the same sources with added items that are not in the index.

        Args:
            neighbours: int32 ``[N + A, S]``, those of all items.
            similarities: float32 ``[N + A, S]``.
            added: float32 ``[A, D]``, unit vectors of the added items.

        """
        extended = Retriever(self.index, neighbours, similarities, self.quota)
        extended._added = added
        return extended

    def retrieve(
        self,
        vectors: Float32Array,
        history: Int32Array,
        items: ItemTable,
        time: Float64Array,
        *,
        prefilters: Sequence[ItemFilter | None] | None = None,
    ) -> Candidates:
        """Return candidates of ``B`` requests.

        Args:
            vectors: user vectors, float32 ``[B, D]``.
            history: int32 ``[B, H]``, newest first (0: none).
            items: the item table as of the requests.
            time: float64 ``[B]``, epoch seconds.
            prefilters: items that each request's tower candidates are limited to; None: all.

        """
        near = self._nearest(
            np.ascontiguousarray(vectors, dtype=np.float32), prefilters or [None] * len(vectors)
        )
        parts = [
            self._union_of_sources(near[row], history[row], self._static(items, float(time[row])))
            for row in range(len(vectors))
        ]
        offsets = np.cumsum([0, *(len(part[0]) for part in parts)])
        item, sources, rank, similar = (
            np.concatenate(column) for column in zip(*parts, strict=True)
        )
        return Candidates(item, sources, rank, similar, offsets.astype(np.int64))

    def _nearest(
        self, vectors: Float32Array, prefilters: Sequence[ItemFilter | None]
    ) -> list[Int64Array]:
        """Return the codes nearest to each user vector, best first; 0: FAISS found fewer."""
        count = self.quota.two_tower
        if not any(prefilters):
            return list(self.nearest(vectors, count)[1])
        return [
            self.nearest(vector[None, :], count, prefilter)[1][0]
            for vector, prefilter in zip(vectors, prefilters, strict=True)
        ]

    def nearest(
        self, vectors: Float32Array, count: int, prefilter: ItemFilter | None = None
    ) -> tuple[Float32Array, Int64Array]:
        """Return cosines and codes of the items nearest to unit vectors ``[B, D]``, best first.

        Both are ``[B, count]``, or narrower if there are fewer items. A code is 0 where the
        prefilter left too few.
        """
        parameters = prefilter.parameters(self.index) if prefilter else None
        limit = min(count, self.index.ntotal)
        cosines, rows = self.index.search(vectors, limit, params=parameters)
        if self._added is None:
            return cosines, rows + 1

        # Compare with all A added items, which the index does not have: [B, A].
        added = np.arange(len(self._added)) + self.index.ntotal + 1
        near = vectors @ self._added.T
        if prefilter:
            near[:, ~prefilter.has(added)] = -np.inf

        # Merge both, [B, limit + A], and keep the nearest.
        cosines = np.concatenate([np.where(rows < 0, -np.inf, cosines), near], axis=1)
        codes = np.concatenate([rows + 1, np.broadcast_to(added, near.shape)], axis=1)
        order = np.argsort(-cosines, axis=1, kind="stable")[:, :count]
        cosines = np.take_along_axis(cosines, order, 1)
        codes = np.take_along_axis(codes, order, 1)
        return cosines, np.where(np.isinf(cosines), 0, codes)

    def prepare(self, items: ItemTable, time: float) -> None:
        """Compute in advance what all requests at this time (epoch seconds) share."""
        self._static(items, time)

    def _static(self, items: ItemTable, time: float) -> _StaticItems:
        """Return the items that are proposed to everybody; cached until availability changes."""
        cached = items.memo.setdefault(self.quota, {})
        state = items.availability_state(time)
        if state not in cached:
            if len(cached) >= _CACHED_STATES:
                cached.clear()
            lists = static_lists(items, self.quota, time)
            bits = [
                np.full(len(codes), 1 << SOURCES.index(name), np.uint8)
                for name, codes in lists.items()
            ]
            cached[state] = _StaticItems(np.concatenate(list(lists.values())), np.concatenate(bits))
        static: _StaticItems = cached[state]
        return static

    def _union_of_sources(
        self, tower: Int64Array, history: Int32Array, static: _StaticItems
    ) -> tuple[Int32Array, SourceBits, Float32Array, Float32Array]:
        """Return one request's items, sources, tower ranks and similarities, as in ``Candidates``.

        Items are in the order in which the sources first propose them.
        """
        recent = history[:RECENT]
        recent = recent[recent > 0]
        return union_of_sources(
            tower,
            self.neighbours[recent],
            self.similarities[recent],
            self._recency,
            self.quota.similar,
            static.codes,
            static.sources,
            self._scratch.slots,
        )


class _Scratch(threading.local):
    """A thread's scratch array with a slot for every item: a look-up is ten times a sort's speed.

    ``slots`` int32 ``[N]`` are all 0 between requests.
    """

    def __init__(self, size: int) -> None:
        self.slots = np.zeros(size, dtype=np.int32)


class _StaticItems(NamedTuple):
    """Items that are proposed to everybody: ``codes`` int32 ``[n]``, ``sources`` uint8 ``[n]``."""

    codes: Int32Array
    sources: SourceBits


def static_lists(items: ItemTable, quota: CandidateQuota, time: float) -> dict[str, Int32Array]:
    """Return the available items that everybody gets: popular, trending and new ones."""
    available = items.available(time)
    month = items.count(c.EVENTS_30D)
    trending = items.count(c.EVENTS_7D) + 1e-3 * month

    # When each item appeared, float64 [N]: as given, else at its first event.
    begin = np.where(
        np.isfinite(items.available_from), items.available_from, items.activity.first_event_at
    )
    begin = np.where(np.isfinite(begin), begin, -np.inf)

    return {
        "popular": top(np.where(available, month, -np.inf), quota.popular),
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

    # Partitioning alone would order equal values at the threshold at random.
    threshold = np.partition(values, -k)[-k]
    above = np.flatnonzero(values > threshold)
    rows = np.concatenate([above, np.flatnonzero(values == threshold)[: k - len(above)]])

    rows = rows[np.lexsort((rows, -values[rows]))]
    best: Int32Array = rows[np.isfinite(values[rows])].astype(np.int32)
    return best
