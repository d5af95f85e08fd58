"""The funnel: user features -> candidates -> hydrate -> rank -> filter, for one request or many at once.

Pure functions of arrays: no HTTP, no store, no clock, so offline evaluation runs what serving runs.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Literal

import numpy as np

from feature_repo import columns as c
from feature_repo.arrays import BoolArray, Float32Array, Int32Array, Int64Array
from ranking.models.onnx import onnx_session
from ranking.models.scorer import CalibratedRanker
from ranking.rows import PairRows
from retrieval.towers.context import UserContext
from serving.recommender.candidates import SOURCES, Candidates, Retriever, top
from serving.recommender.deadline import NEVER, Cost, Deadline
from serving.recommender.filters import FilterRules, Filters, RequestRules, select_items
from serving.recommender.hydrate import Hydrator
from serving.recommender.item_table import ItemTable
from serving.recommender.users import UserBatch

_log = logging.getLogger(__name__)

Watch = Callable[[str], AbstractContextManager[Any]]
"""Float64Array the stage of that name."""

Degradation = Literal[
    "online_store_unavailable",  # Redis did not answer: the request was served without user features
    "unknown_user",  # nothing is known of the user: attributes and history are missing
    "no_history",  # the user has no positive event yet
    "few_candidates",  # fewer than k candidates were allowed: the rest came from the whole catalogue
    "ranker_unavailable",  # the ranker failed: the order is the two towers'
    "ranker_skipped",  # no time was left to rank: the order is the two towers'
    "retrieval_unavailable",  # candidates failed or no time was left: popular items, of the user's categories first
    # A view's values were past its TTL and counted as missing:
    "stale_user_profile",
    "stale_user_history",
    "stale_user_recent",
    "stale_user_activity",
    "stale_user_affinity",
    "stale_user_seen",
]
"""Every word that ``degraded`` may hold."""


@dataclass
class Recommendation:
    """One request's list: codes, scores and sources, best first, and what lay behind it."""

    items: Int32Array
    scores: Float32Array
    sources: list[list[str]]
    degraded: list[Degradation]
    removed: dict[str, int] = field(default_factory=dict)
    rows: Int64Array = field(default_factory=lambda: np.zeros(0, dtype=np.int64))


@dataclass(frozen=True)
class Ranked:
    """Candidates with what the ranker saw and said: everything that ``explain`` and the impression log can tell.

    ``pairs``: by request; ``scores`` float32 ``[n]`` and ``probabilities`` float32 ``[n, T]``: of
    all candidates.
    """

    candidates: Candidates
    pairs: list[PairRows]
    scores: Float32Array
    probabilities: Float32Array

    def rows(
        self, request: int, rows: Int64Array, items: ItemTable
    ) -> tuple[Float32Array, Int32Array]:
        """Return the ranker's inputs, numeric and categorical, of some of a request's candidates.

        Args:
            request: which one.
            rows: int64 ``[m]``, places among all candidates.
            items: the item table that they were ranked with.

        """
        return self.pairs[request][rows - self.candidates.offsets[request]].join(items.rows)


class UserTowerSession:
    """The user tower in ONNX Runtime."""

    def __init__(self, model: bytes, raw_items: Float32Array) -> None:
        self._session = onnx_session(model)
        self._raw = np.asarray(raw_items)

    def with_items(self, raw_items: Float32Array) -> UserTowerSession:
        """Return the same tower over the raw vectors of more items."""
        made = copy(self)
        made._raw = raw_items
        return made

    def __call__(self, context: UserContext) -> Float32Array:
        """Return unit vectors float32 ``[B, D]``."""
        inputs = {**context.arrays(), "clicked": self._raw[context.history]}
        return np.asarray(self._session.run(["vector"], inputs)[0], dtype=np.float32)


class Recommender:
    """A release's funnel."""

    def __init__(
        self,
        tower: UserTowerSession,
        vectors: Float32Array,
        retriever: Retriever,
        ranker: CalibratedRanker,
        rules: FilterRules,
        items: ItemTable,
    ) -> None:
        self.tower = tower
        self.vectors = np.asarray(vectors)  # a view without the costs of np.memmap's indexing
        self.retriever = retriever
        self.hydrator = Hydrator(self.vectors)
        self.ranker = ranker
        self.rules = rules
        self.filters = Filters(rules, items)
        self._cost = Cost()
        self._prepared: (
            tuple[ItemTable, Callable[[PairRows], tuple[Float32Array, Float32Array]]] | None
        ) = None

    def with_items(
        self, tower: UserTowerSession, vectors: Float32Array, retriever: Retriever, items: ItemTable
    ) -> Recommender:
        """Return the same funnel over more items."""
        made = Recommender(tower, vectors, retriever, self.ranker, self.rules, items)
        made._cost = self._cost
        return made

    def recommend(
        self, users: UserBatch, requests: Sequence[RequestRules], items: ItemTable
    ) -> list[Recommendation]:
        """Return one list per request; ``items`` is the item table as of the requests."""
        return self.recommend_ranked(users, requests, items)[0]

    def recommend_ranked(
        self,
        users: UserBatch,
        requests: Sequence[RequestRules],
        items: ItemTable,
        deadline: Deadline = NEVER,
        watch: Watch | None = None,
    ) -> tuple[list[Recommendation], Ranked, Float32Array]:
        """Like ``recommend``, with the ranked candidates and the user vectors behind it.

        ``deadline``: ranking is left out where it would not end in time; ``watch`` times the
        stages.
        """
        watch = watch or _unwatched
        time = users.context.time
        with watch("tower"):
            vectors = self.tower(users.context)
        with watch("retrieve"):
            prefilters = [
                self.filters.prefilter(items, request, float(t))
                for request, t in zip(requests, time, strict=True)
            ]
            candidates = self.retriever.retrieve(
                vectors, users.context.history, items, time, prefilters
            )
        with watch("rank"):
            ranked, lost = self.rank(users, vectors, candidates, items, deadline)
        with watch("filter"):
            lists = [
                self._filter(row, users, vectors, request, ranked, items, lost)
                for row, request in enumerate(requests)
            ]
        return lists, ranked, vectors

    def rank(
        self,
        users: UserBatch,
        vectors: Float32Array,
        candidates: Candidates,
        items: ItemTable,
        deadline: Deadline = NEVER,
    ) -> tuple[Ranked, Degradation | None]:
        """Score candidates; if the ranker breaks or has no time, their order is the towers' and the loss is named."""
        pairs = [
            self.hydrator.pairs(users, row, vectors[row], candidates, items)
            for row in range(len(users))
        ]
        lost: Degradation = "ranker_skipped"
        if deadline is NEVER or self._cost.fits(deadline):
            start = perf_counter()
            try:
                scorer = self._scorer(items)
                found = [scorer(pair) for pair in pairs]
                scores, probabilities = (
                    np.concatenate(parts) for parts in zip(*found, strict=True)
                )
                if np.isfinite(scores).all():
                    if deadline is not NEVER:
                        self._cost.took(perf_counter() - start)
                    return Ranked(candidates, pairs, scores, probabilities), None
            except Exception as error:  # noqa: BLE001 - whatever broke, the request can still be answered
                _log.warning("the ranker failed: %s: %s", type(error).__name__, error)
            lost = "ranker_unavailable"
        empty = np.zeros(
            (len(candidates.item), len(items.codec.spec.event_types)), dtype=np.float32
        )
        return Ranked(
            candidates, pairs, np.concatenate([pair.pair[:, 0] for pair in pairs]), empty
        ), lost

    def popular(
        self, users: UserBatch, row: int, request: RequestRules, items: ItemTable
    ) -> Recommendation:
        """Return popular items, those of the user's categories first: what is left when candidates cannot be made."""
        seen, time = users.seen[row], float(users.context.time[row])
        banned = np.logical_or.reduce(
            list(self.filters.removals(items, request, seen, time).values())
        )
        worth = np.log1p(items.count(c.events("30d")))
        worth = worth * (1.0 + 4.0 * users.category_shares[row][items.categories].max(axis=1))
        codes = top(np.where(banned, -np.inf, worth), max(200, 2 * request.k))
        scores = worth[codes].astype(np.float32)
        chosen, _ = select_items(request.k, codes, scores, items, self.vectors, self.rules)
        result = Recommendation(
            codes[chosen], scores[chosen], [["popular"] for _ in chosen], ["retrieval_unavailable"]
        )
        if len(chosen) < request.k:
            self._backfill(
                result,
                request,
                banned,
                None,
                items,
                Counter(items.categories[codes[chosen], 0].tolist()),
            )
        return result

    def prepare(self, items: ItemTable, time: float | None = None) -> None:
        """Do once, and not on a request's time, what the ranker and, at ``time``, the sources want of a new table."""
        self._scorer(items)
        if time is not None:
            self.retriever.prepare(items, time)
            self.filters.prefilter(items, RequestRules(0), time)

    def _scorer(self, items: ItemTable) -> Callable[[PairRows], tuple[Float32Array, Float32Array]]:
        """Return the ranker with what it reads of these items prepared; made once for a table."""
        prepared = self._prepared
        if prepared is None or prepared[0] is not items:
            prepared = self._prepared = (items, self.ranker.for_items(items.rows))
        return prepared[1]

    def _filter(
        self,
        row: int,
        users: UserBatch,
        vectors: Float32Array,
        request: RequestRules,
        ranked: Ranked,
        items: ItemTable,
        lost: Degradation | None,
    ) -> Recommendation:
        span, time = ranked.candidates.rows(row), float(users.context.time[row])
        codes, scores = ranked.candidates.item[span], ranked.scores[span]
        masks = self.filters.removals(items, request, users.seen[row], time, codes)
        removed: dict[str, int] = {
            reason: int(mask.sum()) for reason, mask in masks.items() if mask.any()
        }
        places = np.flatnonzero(~np.logical_or.reduce(list(masks.values())))
        order = places[np.argsort(-scores[places], kind="stable")]
        taken: Counter[int] = Counter()
        chosen, over = select_items(
            request.k, codes[order], scores[order], items, self.vectors, self.rules, taken
        )
        rows = order[chosen] + span.start
        if over:
            removed["category_quota"] = over
        sources = [_SOURCE_NAMES[bits] for bits in ranked.candidates.sources[rows]]
        result = Recommendation(
            codes[order[chosen]], ranked.scores[rows], sources, [], removed, rows
        )
        if len(rows) < request.k:
            everything = self.filters.removals(items, request, users.seen[row], time)
            banned = np.logical_or.reduce(list(everything.values()))
            banned[codes] = True
            self._backfill(result, request, banned, vectors[row], items, taken)
        if lost:
            result.degraded.append(lost)
        if not users.context.history[row].any():
            result.degraded.append("no_history")
        return result

    def _backfill(
        self,
        result: Recommendation,
        request: RequestRules,
        banned: BoolArray,
        vector: Float32Array | None,
        items: ItemTable,
        taken: Counter[int],
    ) -> None:
        """Fill a short list from all other allowed items, nearest to the user first (without a vector: any)."""
        banned[result.items] = True
        codes = np.flatnonzero(~banned).astype(np.int32)
        if not len(codes):
            return
        near = (
            np.zeros(len(codes), dtype=np.float32)
            if vector is None
            else self.vectors[codes] @ vector
        )
        order = np.lexsort((codes, -near))
        missing = request.k - len(result.items)
        chosen, _ = select_items(
            missing, codes[order], near[order], items, self.vectors, self.rules, taken
        )
        extra = codes[order[chosen]]
        if not len(extra):
            return
        lowest = float(result.scores.min()) if len(result.scores) else 0.0
        below = abs(lowest) * np.arange(1, len(extra) + 1, dtype=np.float32) / (len(extra) + 1)
        result.items = np.concatenate([result.items, extra])
        result.scores = np.concatenate([result.scores, (lowest - below).astype(np.float32)])
        result.sources += [["backfill"] for _ in extra]
        result.degraded.append("few_candidates")


def _unwatched(_: str) -> AbstractContextManager[None]:
    return nullcontext()


_SOURCE_NAMES = [
    [name for position, name in enumerate(SOURCES) if bits >> position & 1]
    for bits in range(1 << len(SOURCES))
]
"""Names of the sources by every pattern of their bits."""
