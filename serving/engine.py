"""The engine that the HTTP app calls: it joins a release, the online store and the clock.

A request never fails because a part is missing: its answer is degraded and says so.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from feature_repo.arrays import Float32Array
from feature_repo.dataset import ContextKind
from feature_repo.events.context import checked_context
from feature_repo.settings import Settings, read_settings
from feature_repo.workspace import Workspace
from retrieval.index import recall_against
from serving.answers import (
    Answer,
    Outcome,
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
from serving.recommender.results import Ranked, Recommendation
from serving.recommender.users import UserBatch
from serving.releases.release import Release

_log = logging.getLogger(__name__)

_WARM_UPS = 10
_BATCH = 32
"""Requests that are answered at once, of a larger number."""

_BATCH_ITEMS = 10_000
"""Items of those; an explained one counts as ``_EXPLAINED``."""

_EXPLAINED = 20
_RECALL_AT = 100
_AHEAD_S = 1.0


class Unwanted(Exception):  # noqa: N818 - a state, said to the caller
    """The client of a batch has gone, so the rest of it was left."""


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
        """``counters``: files of another process; None: read the counters at every new release."""
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
            self.impressions = ImpressionLog(
                workspace.impressions, self.metrics.impressions, erased=self.erasure.erased
            )

    @property
    def release(self) -> Release:
        """The release being served."""
        return self.snapshot.release

    @property
    def items(self) -> ItemTable:
        """Its item table, with the newest counters."""
        return self.snapshot.items

    @property
    def items_as_of(self) -> str | None:
        """When the item counters were read, ISO 8601; None: they are those of the release."""
        return self.snapshot.items_as_of

    def close(self) -> None:
        """Write the buffered impressions."""
        if self.impressions:
            self.impressions.close()

    def adopt(self, release: Release) -> None:
        """Serve another release from the next request on; requests under way keep theirs."""
        timeout_s = self.settings.redis_timeout_ms / 1_000
        online = OnlineFeatures(self.workspace, release.items, self.metrics.observe_age, timeout_s)
        with self._swapping:
            self.changes.poll()
            self.changes.tidy(release, time.time())
            snapshot = ServingSnapshot(release, release, online, release.items)
            snapshot = self._with_newest_counters(self._with_item_changes(snapshot))
            for _ in range(_WARM_UPS):
                self._answers(snapshot, [RecommendationRequest(user_id="warm-up")], NEVER)

            self.snapshot = snapshot
            self.intake = Intake(self._log, release.codec.spec, self.metrics.events, self.erasure)
            self.metrics.serving(release.id)
            self.metrics.items_read(_epoch(snapshot.items_as_of))

    def measure_recall(self) -> None:
        """Set the metric of index recall, by exact search for the newest request's user vector."""
        sample, self._sample = self._sample, None
        if sample is None:
            return
        snapshot, vector = sample
        index = snapshot.release.recommender.retriever.index
        vectors = snapshot.release.recommender.vectors

        # Cosines [N - 1] of all items in the index with the user.
        k = min(_RECALL_AT, index.ntotal)
        cosines = vectors[1 : index.ntotal + 1] @ vector
        exact = np.argpartition(-cosines, k - 1)[:k]
        retrieved = index.search(vector[None, :], k)[1]
        self.metrics.index_recall.set(recall_against(exact[None, :], retrieved))

    def refresh_changes(self) -> None:
        """Apply what was added, removed and restored since the last call, on any server."""
        with self._swapping:
            if self.changes.poll():
                self.snapshot = self._with_item_changes(self.snapshot)
        # Items come and go with time as well: what that changes is computed before a request asks.
        snapshot = self.snapshot
        snapshot.release.recommender.prepare(snapshot.items, time.time() + _AHEAD_S)

    def _with_item_changes(self, snapshot: ServingSnapshot) -> ServingSnapshot:
        """Return the snapshot with the added items and without the removed ones."""
        release = self.changes.apply_to(snapshot.loaded)
        items = release.items
        if snapshot.activity is not None:
            items = items.with_activity(snapshot.activity)
        items = self.changes.without_removed(release, items)

        release.recommender.prepare(items, time.time())
        self.metrics.spare_rows.set(release.retrieval.delta.left)
        online = snapshot.online.with_items(release.items)
        return replace(snapshot, release=release, online=online, items=items)

    def add_item(self, item_id: str, item: ItemUpdate) -> bool:
        """Add an item, here at once and on all servers within a second; see ``ItemChanges.add``."""
        self.refresh_changes()
        changed = self.changes.add(item_id, item, self.snapshot.loaded)
        self.refresh_changes()
        return changed

    def remove_item(self, item_id: str) -> bool:
        """Remove an item, here at once and on all servers within a second.

        Returns:
            whether it was not removed already.

        Raises:
            OnlineStoreUnavailable: Redis did not answer; repeating the call is safe.
            UnknownItem: the release has no such item, and it was not added.

        """
        self._check_known(item_id)
        changed = self.changes.remove(item_id)
        self.refresh_changes()
        return changed

    def restore_item(self, item_id: str) -> bool:
        """Restore a removed item; return whether it was removed.

        Raises:
            OnlineStoreUnavailable: Redis did not answer; repeating the call is safe.
            UnknownItem: the release has no such item, and it was not added.

        """
        self._check_known(item_id)
        changed = self.changes.restore(item_id)
        self.refresh_changes()
        return changed

    def _check_known(self, item_id: str) -> None:
        """Raise ``UnknownItem`` if neither the release nor a change has an item."""
        known = self.snapshot.release.codec.items.code(item_id) or self.changes.knows(item_id)
        if not known:
            raise UnknownItem(item_id)

    def refresh_items(self) -> None:
        """Use the newest item counters, if there are new ones."""
        if self._counters is None or not self._counters.changed():
            return
        with self._swapping:
            self.snapshot = self._with_newest_counters(self.snapshot)
            self.metrics.items_read(_epoch(self.snapshot.items_as_of))

    def _with_newest_counters(self, snapshot: ServingSnapshot) -> ServingSnapshot:
        """Return the snapshot with the newest counters; without an answer it keeps its own."""
        if self._counters is not None:
            newest = self._counters.newest(snapshot.release)
            if newest is None:
                return snapshot
            activity, as_of = newest
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
            BadContext: the context does not fit the data set.

        """
        deadline = deadline or Deadline(self.settings.deadline_ms / 1_000)
        return self._serve([request], deadline)[0]

    def recommend_many(
        self,
        requests: Sequence[RecommendationRequest],
        stop: Callable[[], bool] = lambda: False,
    ) -> list[RecommendationResponse]:
        """Serve many requests in batches, with one read of the online store and one search each.

        Args:
            requests: who asks for what.
            stop: whether nobody wants the answers any more.

        Raises:
            UnknownAttribute: a filter names an attribute that items do not have.
            BadContext: the context does not fit the data set.
            Unwanted: ``stop`` said so between two batches.

        """
        responses: list[RecommendationResponse] = []
        for part in _batches(requests):
            if stop():
                raise Unwanted
            responses += self._serve(part, NEVER)
        return responses

    def _serve(
        self, requests: Sequence[RecommendationRequest], deadline: Deadline
    ) -> list[RecommendationResponse]:
        """Answer requests from the present snapshot, and note and log the answers."""
        snapshot = self.snapshot
        requests = self.erasure.anonymous(requests)
        for request in requests:
            snapshot.release.recommender.filters.check(request.filters, snapshot.items)
        fields = snapshot.release.codec.spec.context
        requests = [_with_checked_context(request, fields) for request in requests]

        answers = self._answers(snapshot, requests, deadline)
        for request, answer in zip(requests, answers, strict=True):
            self._observe(snapshot, request, answer)
        return [answer.response for answer in answers]

    def _observe(
        self, snapshot: ServingSnapshot, request: RecommendationRequest, answer: Answer
    ) -> None:
        """Add an answer to the log line of its request, the metrics and the impression log."""
        response = answer.response
        note(
            answer=response["request_id"],
            release=snapshot.release.id,
            degraded=response["degraded"],
        )
        self.metrics.degrade(response["degraded"])
        self.metrics.show(answer.outcome.result.sources)
        if answer.outcome.ranked:
            self.metrics.proposed(answer.outcome.sources())
        if self.impressions and request.user_id:
            self.impressions.offer(impression_of(request, answer, snapshot))

    def _answers(
        self,
        snapshot: ServingSnapshot,
        requests: Sequence[RecommendationRequest],
        deadline: Deadline,
    ) -> list[Answer]:
        """Return one answer per request, in their order.

        The users' features are read first. The items come from candidates, or are popular ones if
        the deadline has passed or the candidates failed.
        """
        now = time.time()
        with self.metrics.stage("features"):
            features = self._features(snapshot, [request.user_id for request in requests], now)
            users = _user_batch(snapshot, requests, features, now)

        rules = [
            RequestRules(request.k, tuple(request.exclude), request.filters) for request in requests
        ]
        # One list per request; the candidates are of the whole batch (None: popular items).
        results, ranked = self._recommend(snapshot, users, rules, deadline)

        answers = []
        for row, request in enumerate(requests):
            outcome = Outcome(now, features[row], results[row], ranked, row)
            answers.append(make_answer(snapshot, request, outcome))
        return answers

    def _recommend(
        self,
        snapshot: ServingSnapshot,
        users: UserBatch,
        rules: list[RequestRules],
        deadline: Deadline,
    ) -> tuple[list[Recommendation], Ranked | None]:
        """Return one list per request, with the candidates; None: popular items, without any."""
        recommender = snapshot.release.recommender
        if deadline.remaining() > 0:
            try:
                results, ranked, vectors = recommender.recommend_ranked(
                    users, rules, snapshot.items, deadline=deadline, timer=self.metrics.stage
                )
            except Exception:
                _log.exception("candidates failed; popular items are served")
            else:
                self._sample = (snapshot, vectors[0])
                return results, ranked

        popular = [
            recommender.popular(users, row, rule, snapshot.items) for row, rule in enumerate(rules)
        ]
        return popular, None

    def _features(
        self, snapshot: ServingSnapshot, user_ids: list[str], now: float
    ) -> Sequence[UserFeatures | None]:
        """Return users' features; None for all if the online store does not answer in time."""
        features: Sequence[UserFeatures | None] = [None] * len(user_ids)
        if self._breaker.allows():
            try:
                features = snapshot.online.users(user_ids, now)
            except OnlineStoreUnavailable:
                self._breaker.failed()
            else:
                self._breaker.succeeded()
        self.metrics.breaker("redis", "closed" if self._breaker.closed else "open")
        return features

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


def _batches(
    requests: Sequence[RecommendationRequest],
) -> Iterator[Sequence[RecommendationRequest]]:
    """Yield the requests in parts whose work ends within about a second."""
    part: list[RecommendationRequest] = []
    work = 0
    for request in requests:
        cost = request.k * (_EXPLAINED if request.explain else 1)
        if part and (len(part) == _BATCH or work + cost > _BATCH_ITEMS):
            yield part
            part = []
            work = 0
        part.append(request)
        work += cost
    yield part


def _with_checked_context(
    request: RecommendationRequest, fields: dict[str, ContextKind]
) -> RecommendationRequest:
    if not request.context:
        return request
    checked = checked_context(request.context, fields)
    return request.model_copy(update={"context": checked})


def _user_batch(
    snapshot: ServingSnapshot,
    requests: Sequence[RecommendationRequest],
    features: Sequence[UserFeatures | None],
    now: float,
) -> UserBatch:
    """Return the users of some requests as arrays; without features nothing is known of a user."""
    codec = snapshot.release.codec
    columns = [
        (of_user.columns if of_user else no_features(request.user_id, codec))
        | {name: [value] for name, value in request.context.items()}
        for of_user, request in zip(features, requests, strict=True)
    ]
    return snapshot.release.reader.read(concat_rows(columns), np.full(len(requests), now))


def _epoch(timestamp: str | None) -> float | None:
    return datetime.fromisoformat(timestamp).timestamp() if timestamp else None
