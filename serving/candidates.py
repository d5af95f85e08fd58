"""Candidates: the union of what several sources propose for each request."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from feature_repo import columns as c
from feature_repo.encoding import Codes, Floats
from serving.catalogue import ItemTable

SOURCES = ("two_tower", "similar", "popular", "trending", "new", "backfill")
"""Every candidate source; a candidate's ``sources`` bit ``i`` is set if source ``i`` proposed it."""

_STATES_KEPT = 1_000

# FAISS gives these classes keyword arguments when it is imported, which its type hints do not know.
_search_parameters: Any = faiss.SearchParameters
_inverted_search_parameters: Any = faiss.SearchParametersIVF

RECENT = 10
"""How many of the newest history items the similar-items source starts from."""


class Shares(BaseModel):
    """How many candidates each source may propose."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    two_tower: int = Field(default=350, ge=1)
    similar: int = Field(default=100, ge=0)
    popular: int = Field(default=30, ge=0)
    trending: int = Field(default=10, ge=0)
    new: int = Field(default=10, ge=0)


@dataclass(frozen=True)
class Candidates:
    """Candidates of ``B`` requests end to end: request ``b`` has rows ``offsets[b]:offsets[b + 1]``.

    ``item`` int32 ``[n]`` codes, ``sources`` uint8 ``[n]`` bits, ``tower_rank`` float32 ``[n]`` place
    among the tower's candidates (NaN: not among them), ``similar`` float32 ``[n, 2]`` co-visitation
    with the recent items and with the newest one.
    """

    item: Codes
    sources: npt.NDArray[np.uint8]
    tower_rank: Floats
    similar: Floats
    offsets: npt.NDArray[np.int64]

    @property
    def request(self) -> npt.NDArray[np.int64]:
        """Which request each row belongs to, int64 ``[n]``."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    def rows(self, request: int) -> slice:
        """Return the rows of a request."""
        return slice(int(self.offsets[request]), int(self.offsets[request + 1]))


class Narrow:
    """A part of the catalogue for the search to stay within; made once for a rule, used by many requests."""

    def __init__(self, mask: npt.NDArray[np.bool_]) -> None:
        """``mask`` bool ``[N]``: which items are in it."""
        self.share = float(mask.mean())
        # The index has no row for item 0.
        self._bits = np.packbits(mask[1:], bitorder="little")
        self._selector = faiss.IDSelectorBitmap(len(self._bits), faiss.swig_ptr(self._bits))

    def has(self, codes: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
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

    def __init__(self, index: faiss.Index, neighbours: Codes, similarities: Floats, shares: Shares) -> None:
        self.index = index
        self.neighbours = np.asarray(neighbours)  # views without the costs of np.memmap's indexing
        self.similarities = np.asarray(similarities)
        self.shares = shares
        self._recency = (0.8 ** np.arange(RECENT)).astype(np.float32)
        self._desk = _Desk(len(neighbours))
        self._added: Floats | None = None

    def over(self, neighbours: Codes, similarities: Floats, added: Floats) -> Retriever:
        """Return the same sources with added items, which the index has not.

        Args:
            neighbours: int32 ``[N + A, n]``, those of all items.
            similarities: float32 ``[N + A, n]``.
            added: float32 ``[A, D]``, unit vectors of the added items.

        """
        made = Retriever(self.index, neighbours, similarities, self.shares)
        made._added = added
        return made

    def retrieve(
        self,
        vectors: Floats,
        history: Codes,
        items: ItemTable,
        time: npt.NDArray[np.float64],
        narrow: Sequence[Narrow | None] | None = None,
    ) -> Candidates:
        """Return candidates of ``B`` requests.

        Args:
            vectors: user vectors float32 ``[B, D]``.
            history: int32 ``[B, H]`` newest first.
            items: the item table as of the requests.
            time: float64 ``[B]`` epoch seconds.
            narrow: the items that a request's tower candidates are to be among; None: among all.

        """
        near = self._nearest(np.ascontiguousarray(vectors, dtype=np.float32), narrow or [None] * len(vectors))
        parts = [self._merge(near[b], history[b], self._static(items, float(time[b]))) for b in range(len(vectors))]
        sizes = np.cumsum([0, *(len(part[0]) for part in parts)])
        item, sources, rank, similar = (np.concatenate(column) for column in zip(*parts, strict=True))
        return Candidates(item, sources, rank, similar, sizes.astype(np.int64))

    def _nearest(self, vectors: Floats, narrow: Sequence[Narrow | None]) -> list[npt.NDArray[np.int64]]:
        """Return the codes nearest to each user vector, best first; 0 where FAISS found fewer than were asked for."""
        if not any(narrow):
            return list(self.nearest(vectors, self.shares.two_tower)[1])
        pairs = zip(vectors, narrow, strict=True)
        return [self.nearest(vector[None, :], self.shares.two_tower, among)[1][0] for vector, among in pairs]

    def nearest(self, vectors: Floats, count: int, among: Narrow | None = None) -> tuple[Floats, npt.NDArray[np.int64]]:
        """Return cosines and codes of the items nearest to unit vectors ``[B, D]``, best first, ``[B, count]`` each.

        They are fewer if there are fewer items; a code is 0 where too few were found ``among`` some.
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

    def _static(self, items: ItemTable, time: float) -> dict[str, Codes]:
        """Return the static lists of a moment, made once for as long as nothing comes or goes."""
        known = items.memo.setdefault(self.shares, {})
        state = int(items.availability_state(np.array([time]))[0])
        if state not in known:
            if len(known) >= _STATES_KEPT:
                known.clear()
            known[state] = static_lists(items, self.shares, time)
        lists: dict[str, Codes] = known[state]
        return lists

    def _merge(
        self, tower: npt.NDArray[np.int64], history: Codes, static: dict[str, Codes]
    ) -> tuple[Codes, npt.NDArray[np.uint8], Floats, Floats]:
        """Return items in the order in which the sources first propose them, with their bits and scores."""
        tower = tower[tower > 0].astype(np.int32)  # FAISS says -1 where it found fewer
        pool, score, last = self._similar(history)
        lists: list[tuple[int, Any]] = [(0, tower), (1, pool[: self.shares.similar])]
        lists += [(SOURCES.index(name), codes) for name, codes in static.items()]
        bits, parts = self._desk.bits, []
        for source, codes in lists:
            found = bits[codes]
            parts.append(codes[found == 0])
            bits[codes] = found | (1 << source)
        item = np.concatenate(parts)
        sources = bits[item]
        bits[item] = 0
        rank = np.full(len(item), np.nan, dtype=np.float32)
        rank[: len(tower)] = np.log1p(np.arange(len(tower), dtype=np.float32))
        return item, sources, rank, self._similar_to(item, pool, score, last)

    def _similar(self, history: Codes) -> tuple[Codes, Floats, Floats]:
        """Return items co-visited with the recent ones, best first, and their two scores."""
        recent = history[:RECENT]
        recent = recent[recent > 0]
        if not len(recent):
            empty = np.zeros(0, dtype=np.float32)
            return np.zeros(0, dtype=np.int32), empty, empty
        near, weight = self.neighbours[recent], self.similarities[recent]
        every, place = near.ravel(), self._desk.place
        numbers = np.arange(len(every), dtype=np.int32)
        place[every] = numbers  # of an item that comes several times the last number stays
        mine = place[every]
        score = np.bincount(mine, (weight * self._recency[: len(recent), None]).ravel(), minlength=len(every))
        last = np.bincount(mine[: near.shape[1]], weight[0], minlength=len(every))
        kept = np.flatnonzero((mine == numbers) & (every > 0) & (score > 0))
        kept = kept[np.lexsort((every[kept], -score[kept]))]
        return every[kept], score[kept].astype(np.float32), last[kept].astype(np.float32)

    def _similar_to(self, item: Codes, pool: Codes, score: Floats, last: Floats) -> Floats:
        """Return both scores of items, float32 ``[n, 2]``, 0 for those that are not in the pool."""
        found = np.zeros((len(item), 2), dtype=np.float32)
        if len(pool):
            self._desk.place[pool] = np.arange(len(pool), dtype=np.int32)
            place = np.clip(self._desk.place[item], 0, len(pool) - 1)  # of other items it says anything
            match = pool[place] == item
            found[match, 0] = score[place[match]]
            found[match, 1] = last[place[match]]
        return found


class _Desk(threading.local):
    """A thread's scratch arrays with a place for every item: looking up beats sorting by ten to one.

    ``bits`` uint8 ``[N]`` is all 0 between requests; ``place`` int32 ``[N]`` holds leftovers.
    """

    def __init__(self, size: int) -> None:
        self.bits = np.zeros(size, dtype=np.uint8)
        self.place = np.zeros(size, dtype=np.int32)


def static_lists(items: ItemTable, shares: Shares, time: float) -> dict[str, Codes]:
    """Return the sources that are the same for everybody: popular, trending and new items that can be had."""
    available = items.available(time)
    popular, trending = items.count(c.events("30d")), items.count(c.events("7d")) + 1e-3 * items.count(c.events("30d"))
    begin = np.where(np.isfinite(items.available_from), items.available_from, items.activity.first_event_at)
    begin = np.where(np.isfinite(begin), begin, -np.inf)
    return {
        "popular": top(np.where(available, popular, -np.inf), shares.popular),
        "trending": top(np.where(available, trending * np.exp(trend(items)), -np.inf), shares.trending),
        "new": top(np.where(available, begin, -np.inf), shares.new),
    }


def trend(items: ItemTable) -> Floats:
    """Return each item's trend, log of its week's daily rate over its month's, float32 ``[N]``."""
    return items.count(c.TREND)


def top(values: npt.NDArray[Any], k: int) -> Codes:
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
    best: Codes = rows[np.isfinite(values[rows])].astype(np.int32)
    return best
