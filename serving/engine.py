"""What the HTTP app calls: a release, the online store and the clock put together, never failing a request."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from feature_repo.arrays import Float32Array
from feature_repo.settings import Settings, read_settings
from feature_repo.workspace import Workspace
from retrieval.index import recall_against
from serving.answers import (
    Answer,
    ServingSnapshot,
    UnknownItem,
    impression_of,
    make_answer,
    similar_items,
)
from serving.api.schemas import (
    EventReceipt,
    ItemUpdate,
    RecommendationRequest,
    RecommendationResponse,
    SimilarItemsResponse,
)
from serving.counters import CounterFiles
from serving.erasure import Erasure, ErasureResponse
from serving.event_log.open import open_log
from serving.impressions import ImpressionLog
from serving.intake import Intake
from serving.live_items.changes import ItemChanges
from serving.observability.logs import note
from serving.observability.metrics import Metrics
from serving.online.features import (
    OnlineFeatures,
    OnlineStoreUnavailable,
    UserFeatures,
    concat_rows,
    no_features,
)
from serving.recommender.deadline import NEVER, Breaker, Deadline
from serving.recommender.filters import RequestRules
from serving.recommender.item_table import ItemTable
from serving.recommender.recommender import Ranked, Recommendation
from serving.releases.release import Release

_log = logging.getLogger(__name__)

_WARM_UPS = 10
_TOGETHER = 32
_RECALL_AT = 100


class Engine:
    """Answers the API's questions."""

    def __init__(
        self,
        release: Release,
        workspace: Workspace,
        *,
        log_impressions: bool = True,
        settings: Settings | None = None,
        metrics: Metrics | None = None,
        counters: CounterFiles | None = None,
    ) -> None:
        """``counters``: where another process keeps the item counters; without it they are read when one is made."""
        self.settings = settings or read_settings()
        self.metrics = metrics or Metrics()
        self.impressions: ImpressionLog | None = None
        self.workspace = workspace
        self._counters = counters
        self._breaker = Breaker()
        self._log = open_log(workspace)
        self.erasure = Erasure(workspace)
        self.changes = ItemChanges(workspace)
        self._swapping = threading.Lock()
        self._sample: tuple[ServingSnapshot, Float32Array] | None = None
        self.snapshot: ServingSnapshot
        self.adopt(release)
        if log_impressions:
            self.impressions = ImpressionLog(workspace.impressions, self.metrics.impressions)

    @property
    def release(self) -> Release:
        """The release being served."""
        return self.snapshot.release

    @property
    def items(self) -> ItemTable:
        """Its item table, with the newest counters that were read."""
        return self.snapshot.items

    @property
    def items_as_of(self) -> str | None:
        """When the item counters were read from the online store (ISO 8601); None: they are the release's own."""
        return self.snapshot.items_as_of

    def close(self) -> None:
        """Write the impressions that still wait."""
        if self.impressions:
            self.impressions.close()

    def adopt(self, release: Release) -> None:
        """Serve another release from the next request on; requests under way end on the one that they began with."""
        timeout_s = self.settings.redis_timeout_ms / 1_000
        online = OnlineFeatures(self.workspace, release.items, self.metrics.observe_age, timeout_s)
        with self._swapping:
            self.changes.poll()
            self.changes.tidy(release, time.time())
            snapshot = self._refreshed(
                self._changed(ServingSnapshot(release, release, online, release.items))
            )
            for _ in range(_WARM_UPS):
                self._answers(snapshot, [RecommendationRequest(user_id="warm-up")], NEVER)
            self.snapshot, self.intake = (
                snapshot,
                Intake(self._log, release.codec.spec, self.metrics.events, self.erasure),
            )
            self.metrics.serving(release.id)
            self.metrics.items_read(_epoch(snapshot.items_as_of))

    def measure_recall(self) -> None:
        """Compare the index with exact search for the newest request's user vector, as a metric."""
        sample, self._sample = self._sample, None
        if sample is None:
            return
        snapshot, vector = sample
        index, vectors = (
            snapshot.release.recommender.retriever.index,
            snapshot.release.recommender.vectors,
        )
        at = min(_RECALL_AT, index.ntotal)
        near = vectors[1 : index.ntotal + 1] @ vector
        exact = np.argpartition(-near, at - 1)[:at]
        found = index.search(vector[None, :], at)[1]
        self.metrics.index_recall.set(recall_against(exact[None, :], found))

    def refresh_changes(self) -> None:
        """Show removed items no more, restored ones again, and added ones as well."""
        with self._swapping:
            if self.changes.poll():
                self.snapshot = self._changed(self.snapshot)

    def _changed(self, snapshot: ServingSnapshot) -> ServingSnapshot:
        """Return what is served with the items that were added and without those that were removed."""
        release = self.changes.apply_to(snapshot.loaded)
        items = (
            release.items
            if snapshot.activity is None
            else release.items.with_activity(snapshot.activity)
        )
        items = self.changes.remaining(release, items)
        release.recommender.prepare(items, time.time())
        self.metrics.spare_rows.set(release.retrieval.delta.left)
        return replace(
            snapshot, release=release, online=snapshot.online.with_items(release.items), items=items
        )

    def add_item(self, item_id: str, item: ItemUpdate) -> bool:
        """Add an item, here at once and on all servers within a second; see ``ItemChanges.add``."""
        self.refresh_changes()
        changed = self.changes.add(item_id, item, self.snapshot.loaded)
        self.refresh_changes()
        return changed

    def remove_item(self, item_id: str) -> bool:
        """Show an item no more, here at once and on all servers within a second; return whether it was shown before.

        Raises:
            OnlineStoreUnavailable: Redis did not answer; repeating the call is safe.

        """
        changed = self.changes.remove(item_id)
        self.refresh_changes()
        return changed

    def restore_item(self, item_id: str) -> bool:
        """Take a removal back; return whether there was one.

        Raises:
            OnlineStoreUnavailable: Redis did not answer; repeating the call is safe.
            UnknownItem: the release has no such item, and it was not added.

        """
        if self.snapshot.release.codec.items.code(item_id) == 0 and not self.changes.knows(item_id):
            raise UnknownItem(item_id)
        changed = self.changes.restore(item_id)
        self.refresh_changes()
        return changed

    def refresh_items(self) -> None:
        """Serve with other item counters if there are some."""
        if self._counters is None or not self._counters.changed():
            return
        with self._swapping:
            self.snapshot = self._refreshed(self.snapshot)
            self.metrics.items_read(_epoch(self.snapshot.items_as_of))

    def _refreshed(self, snapshot: ServingSnapshot) -> ServingSnapshot:
        """Return the newest item counters that there are; where the store does not answer, those in use stay."""
        if self._counters is not None:
            found = self._counters.newest(snapshot.release)
            if found is None:
                return snapshot
            activity, as_of = found
        else:
            now = datetime.now(UTC)
            as_of = now.isoformat(timespec="microseconds")
            try:
                activity = snapshot.online.item_activity(now.timestamp())
            except OnlineStoreUnavailable:
                return snapshot
        items = snapshot.items.with_activity(activity)
        snapshot.release.recommender.prepare(items, time.time())
        return replace(snapshot, items=items, activity=activity, items_as_of=as_of)

    def user_features(self, user_id: str) -> UserFeatures:
        """Return what the online store knows of a user."""
        return self.snapshot.online.user(self.erasure.served_as(user_id), time.time(), whole=True)

    def recommend(
        self, request: RecommendationRequest, deadline: Deadline | None = None
    ) -> RecommendationResponse:
        """Serve one request.

        Args:
            request: who asks for what.
            deadline: by when to answer (default: ``deadline_ms`` from now).

        Raises:
            UnknownAttribute: a filter names an attribute that items do not have.

        """
        return self._served([request], deadline or Deadline(self.settings.deadline_ms / 1_000))[0]

    def recommend_many(
        self, requests: Sequence[RecommendationRequest]
    ) -> list[RecommendationResponse]:
        """Serve many requests at once: one trip to the online store and one search for all of them.

        Raises:
            UnknownAttribute: a filter names an attribute that items do not have.

        """
        parts = (
            requests[start : start + _TOGETHER] for start in range(0, len(requests), _TOGETHER)
        )
        return [response for part in parts for response in self._served(part, NEVER)]

    def _served(
        self, requests: Sequence[RecommendationRequest], deadline: Deadline
    ) -> list[RecommendationResponse]:
        snapshot, requests = self.snapshot, self.erasure.anonymous(requests)
        for request in requests:
            snapshot.release.recommender.filters.check(request.filters, snapshot.items)
        answers = self._answers(snapshot, requests, deadline)
        for request, answer in zip(requests, answers, strict=True):
            note(
                answer=answer.response["request_id"],
                release=snapshot.release.id,
                degraded=answer.response["degraded"],
            )
            self.metrics.degrade(answer.response["degraded"])
            self.metrics.show(answer.result.sources)
            if answer.ranked:
                self.metrics.proposed(
                    answer.ranked.candidates.sources[answer.ranked.candidates.rows(answer.row)]
                )
            if self.impressions and request.user_id:
                self.impressions.offer(impression_of(request, answer, snapshot))
        return [answer.response for answer in answers]

    def _answers(
        self,
        snapshot: ServingSnapshot,
        requests: Sequence[RecommendationRequest],
        deadline: Deadline,
    ) -> list[Answer]:
        recommender, codec, now = snapshot.release.recommender, snapshot.release.codec, time.time()
        with self.metrics.stage("features"):
            known = self._features(snapshot, [request.user_id for request in requests], now)
            columns = [
                found.columns if found else no_features(request.user_id, codec)
                for found, request in zip(known, requests, strict=True)
            ]
            users = snapshot.release.reader.read(concat_rows(columns), np.full(len(requests), now))
        rules = [
            RequestRules(request.k, tuple(request.exclude), request.filters) for request in requests
        ]
        ranked: Ranked | None = None
        results: list[Recommendation] = []
        if deadline.remaining() > 0:
            try:
                results, ranked, vectors = recommender.recommend_ranked(
                    users,
                    rules,
                    snapshot.items,
                    deadline=deadline,
                    timer=self.metrics.stage,
                )
                self._sample = (snapshot, vectors[0])
            except Exception:
                _log.exception("candidates failed; popular items are served")
        if ranked is None:
            results = [
                recommender.popular(users, row, rule, snapshot.items)
                for row, rule in enumerate(rules)
            ]
        rows = zip(requests, known, results, strict=True)
        return [
            make_answer(snapshot, request, now, features, result, ranked, row)
            for row, (request, features, result) in enumerate(rows)
        ]

    def _features(
        self, snapshot: ServingSnapshot, user_ids: list[str], now: float
    ) -> Sequence[UserFeatures | None]:
        """Return users' features; None for all where the online store does not answer in time."""
        found: Sequence[UserFeatures | None] = [None] * len(user_ids)
        if self._breaker.allows():
            try:
                found = snapshot.online.users(user_ids, now)
            except OnlineStoreUnavailable:
                self._breaker.failed()
            else:
                self._breaker.succeeded()
        self.metrics.breaker("redis", "closed" if self._breaker.closed else "open")
        return found

    def similar(self, item_id: str, k: int) -> SimilarItemsResponse:
        """Return items like another: co-visited ones first, then the nearest vectors.

        Raises:
            UnknownItem: the release has no such item.

        """
        return similar_items(self.snapshot, item_id, k)

    def erase(self, user_id: str) -> ErasureResponse:
        """Forget a user, see ``Erasure``."""
        return self.erasure.erase(user_id)

    def accept(self, raw: Sequence[dict[str, Any]]) -> EventReceipt:
        """Check events one by one and append the good ones to the log, see ``Intake``."""
        return self.intake.accept(raw)


def _epoch(moment: str | None) -> float | None:
    return datetime.fromisoformat(moment).timestamp() if moment else None
