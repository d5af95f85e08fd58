"""The recommender: user features -> candidates -> hydrate -> rank -> filter.

It takes one request or many at once, and is made of pure functions of arrays: no HTTP, no store, no
clock. So offline evaluation runs what serving runs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from time import perf_counter
from typing import Any

import numpy as np

from feature_repo import columns as c
from feature_repo.arrays import Float32Array, Int32Array
from ranking.models.scorer import CalibratedRanker
from ranking.rows import PairRows
from serving.recommender.candidates import FEW, Candidates, Retriever
from serving.recommender.deadline import NEVER, Deadline, StepTime
from serving.recommender.fallback import popular_order
from serving.recommender.filters import FilterRules, Filters, RequestRules, allowed_by
from serving.recommender.hydrate import Hydrator
from serving.recommender.item_table import ItemTable
from serving.recommender.results import SOURCE_NAMES, Degradation, Ranked, Recommendation
from serving.recommender.selection import Selection
from serving.recommender.user_tower import UserTowerSession
from serving.recommender.users import UserBatch

_log = logging.getLogger(__name__)

StageTimer = Callable[[str], AbstractContextManager[Any]]
"""Times the stage of that name."""

Scorer = Callable[[PairRows], tuple[Float32Array, Float32Array]]
"""Returns scores float32 ``[n]`` and probabilities float32 ``[n, T]`` of a request's candidates."""


class Recommender:
    """The stages of a release, from users' features to lists of items."""

    def __init__(
        self,
        *,
        tower: UserTowerSession,
        vectors: Float32Array,
        retriever: Retriever,
        ranker: CalibratedRanker,
        rules: FilterRules,
        items: ItemTable,
    ) -> None:
        """``vectors``: unit item vectors, float32 ``[N, D]``."""
        self.tower = tower
        self.vectors = np.asarray(vectors)  # a view without the costs of np.memmap's indexing
        self.retriever = retriever
        self.hydrator = Hydrator(self.vectors, items.codec)
        self.ranker = ranker
        self.rules = rules
        self.filters = Filters(rules, items)
        self._ranking_time = StepTime()
        self._prepared: tuple[ItemTable, Scorer] | None = None

    def with_items(
        self,
        tower: UserTowerSession,
        vectors: Float32Array,
        retriever: Retriever,
        items: ItemTable,
    ) -> Recommender:
        """Return the same recommender over more items."""
        extended = Recommender(
            tower=tower,
            vectors=vectors,
            retriever=retriever,
            ranker=self.ranker,
            rules=self.rules,
            items=items,
        )
        extended._ranking_time = self._ranking_time
        return extended

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
        *,
        deadline: Deadline = NEVER,
        timer: StageTimer | None = None,
    ) -> tuple[list[Recommendation], Ranked, Float32Array]:
        """Return the lists, the ranked candidates behind them and the user vectors.

        Args:
            users: features of ``B`` users.
            requests: what each of them asks for.
            items: the item table as of the requests.
            deadline: ranking is skipped if it would probably not end in time.
            timer: times the stages.

        """
        timer = timer or _untimed

        with timer("tower"):
            vectors = self.tower(users.context)

        with timer("retrieve"):
            candidates = self._retrieve(users, vectors, requests, items)

        with timer("rank"):
            pairs = self.hydrator.pairs(users, vectors, candidates, items, deadline=deadline)
            ranked = self._rank(candidates, pairs, items, deadline)

        with timer("filter"):
            recommendations = [
                self._filter(row, request, users=users, vectors=vectors, ranked=ranked, items=items)
                for row, request in enumerate(requests)
            ]

        return recommendations, ranked, vectors

    def popular(
        self, users: UserBatch, row: int, request: RequestRules, items: ItemTable
    ) -> Recommendation:
        """Return popular items, those of the user's categories first: the list without candidates.

        ``row``: index of the request's user in ``users``.
        """
        time = float(users.context.time[row])
        codes = self.filters.fillers(items, request, seen=users.seen[row], time=time)

        # Popularity [n]: log of a month's events, up to five times that in the user's categories.
        affinity = users.category_shares[row][items.categories[codes]].max(axis=1)
        popularity = np.log1p(items.count(c.EVENTS_30D, codes)) * (1.0 + 4.0 * affinity)
        order = np.lexsort((codes, -popularity))
        codes = codes[order]
        scores = popularity[order].astype(np.float32)

        selection = Selection(self.rules, items, self.vectors)
        head = max(200, 2 * request.k)
        chosen = selection.select(request.k, codes[:head], scores[:head])
        result = Recommendation(
            codes[chosen], scores[chosen], [["popular"] for _ in chosen], ["retrieval_unavailable"]
        )
        if len(chosen) < request.k:
            self._backfill(result, request.k, np.delete(codes, chosen), selection)
        return result

    def prepare(self, items: ItemTable, time: float | None = None) -> None:
        """Compute in advance what requests would compute once for a new item table.

        ``time``: also prepare the candidate sources and the prefilter of this time, epoch seconds.
        """
        self._scorer(items)
        if time is not None:
            popular_order(items, time)
            self.retriever.prepare(items, time)
            self.filters.prefilter(items, RequestRules(0), time)

    def _retrieve(
        self,
        users: UserBatch,
        vectors: Float32Array,
        requests: Sequence[RequestRules],
        items: ItemTable,
    ) -> Candidates:
        """Return the candidates of users with these vectors, float32 ``[B, D]``."""
        times = users.context.time
        prefilters = [
            self.filters.prefilter(items, request, float(time))
            for request, time in zip(requests, times, strict=True)
        ]
        return self.retriever.retrieve(
            vectors, users.context.history, items, times, prefilters=prefilters
        )

    def _rank(
        self,
        candidates: Candidates,
        pairs: list[PairRows],
        items: ItemTable,
        deadline: Deadline,
    ) -> Ranked:
        """Score candidates; if the ranker fails or has no time, the towers' scores order them."""
        timed = deadline is not NEVER
        if timed and not self._ranking_time.fits(deadline):
            return _tower_order(candidates, pairs, items, "ranker_skipped")

        start = perf_counter()
        try:
            score = self._scorer(items)
            parts = [score(pair) for pair in pairs]
            scores = np.concatenate([scores for scores, _ in parts])
            probabilities = np.concatenate([probabilities for _, probabilities in parts])
        except Exception as error:  # noqa: BLE001 - the request can be answered without the ranker
            _log.warning("the ranker failed: %s: %s", type(error).__name__, error)
            return _tower_order(candidates, pairs, items, "ranker_unavailable")

        if not np.isfinite(scores).all():
            return _tower_order(candidates, pairs, items, "ranker_unavailable")
        if timed:
            self._ranking_time.record(perf_counter() - start)
        return Ranked(candidates, pairs, scores, probabilities)

    def _scorer(self, items: ItemTable) -> Scorer:
        """Return the ranker with the inputs of these items prepared; made once for a table."""
        prepared = self._prepared
        if prepared is None or prepared[0] is not items:
            prepared = self._prepared = (items, self.ranker.for_items(items.rows))
        return prepared[1]

    def _filter(
        self,
        row: int,
        request: RequestRules,
        *,
        users: UserBatch,
        vectors: Float32Array,
        ranked: Ranked,
        items: ItemTable,
    ) -> Recommendation:
        """Return one request's list: its allowed candidates, best first, by quota and diversity."""
        seen = users.seen[row]
        time = float(users.context.time[row])
        rows = ranked.candidates.rows(row)
        codes = ranked.candidates.item[rows]
        scores = ranked.scores[rows]

        # Apply the rules to the request's n candidates.
        removals = self.filters.removals(items, request, seen=seen, time=time, codes=codes)
        removed: dict[str, int] = {
            reason: int(mask.sum()) for reason, mask in removals.items() if mask.any()
        }

        # Select from the allowed candidates in order of score, [a] indices into ``codes``.
        allowed = np.flatnonzero(allowed_by(removals))
        order = allowed[np.argsort(-scores[allowed], kind="stable")]
        selection = Selection(self.rules, items, self.vectors)
        chosen = order[selection.select(request.k, codes[order], scores[order])]
        if selection.over_quota:
            removed["category_quota"] = selection.over_quota

        selected = chosen + rows.start
        result = Recommendation(
            items=codes[chosen],
            scores=ranked.scores[selected],
            sources=[SOURCE_NAMES[bits] for bits in ranked.candidates.sources[selected]],
            degraded=[],
            removed=removed,
            rows=selected,
        )

        # Fill a short list with allowed items that no source proposed.
        if len(chosen) < request.k:
            others = self.filters.fillers(items, request, seen=seen, time=time, listed=codes)
            self._backfill(result, request.k, others, selection, vector=vectors[row])

        if ranked.degradation:
            result.degraded.append(ranked.degradation)
        result.degraded += [
            f"missing_{name}" for name in (*users.missing, *ranked.pairs[row].missing)
        ]
        if not users.context.history[row].any():
            result.degraded.append("no_history")
        return result

    def _backfill(
        self,
        result: Recommendation,
        k: int,
        codes: Int32Array,
        selection: Selection,
        *,
        vector: Float32Array | None = None,
    ) -> None:
        """Fill a short list with allowed items, those nearest to the user first.

        Args:
            result: the list; extended.
            k: its length in the end, if there are enough items.
            codes: int32 ``[a]``, allowed items that the list does not have.
            selection: the selection that the list was made with.
            vector: the user's, float32 ``[D]``; None: all items are equally near.

        """
        # Cosines [a] of the items with the user.
        if vector is None:
            cosines = np.zeros(len(codes), dtype=np.float32)
        else:
            cosines = self.vectors[codes] @ vector
        order = np.argsort(-cosines, kind="stable")

        missing = k - len(result.items)
        chosen = order[selection.select(missing, codes[order], cosines[order])]
        if len(chosen) or len(self.vectors) > FEW:  # in a large catalogue there may be more
            result.degraded.append("few_candidates")

        # Scores that fall evenly below the lowest score of the list.
        lowest = float(result.scores.min()) if len(result.scores) else 0.0
        steps = np.arange(1, len(chosen) + 1, dtype=np.float32)
        scores = lowest - abs(lowest) * steps / (len(chosen) + 1)

        result.items = np.concatenate([result.items, codes[chosen]])
        result.scores = np.concatenate([result.scores, scores.astype(np.float32)])
        result.sources += [["backfill"] for _ in chosen]


def _tower_order(
    candidates: Candidates, pairs: list[PairRows], items: ItemTable, degradation: Degradation
) -> Ranked:
    """Return candidates scored by the cosine of user and item vector, without probabilities."""
    scores = np.concatenate([pair.pair[:, 0] for pair in pairs])
    heads = len(items.codec.spec.event_types)
    probabilities = np.zeros((len(candidates.item), heads), dtype=np.float32)
    return Ranked(candidates, pairs, scores, probabilities, degradation)


def _untimed(_: str) -> AbstractContextManager[None]:
    return nullcontext()
