"""What the HTTP app calls: a release, the online store and the clock put together, never failing a request."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from feature_repo import columns as c
from feature_repo.workspace import Workspace
from serving.events import EventLog
from serving.filters import RequestRules
from serving.online import OnlineFeatures, OnlineStoreUnavailable, UserFeatures, no_features
from serving.recommender import Degradation, Ranked, Recommendation
from serving.release import Release
from serving.schemas import (
    Event,
    EventsResponse,
    RecommendationRequest,
    RecommendationResponse,
    RecommendedItem,
    Rejected,
    SimilarResponse,
)

_OLDEST_EVENT_S = 7 * 86_400
_CLOCK_SKEW_S = 300
_TOP_FEATURES = 8
_SOURCE_FEATURES = {
    "two_tower": "tower_score",
    "similar": "similar_score",
    "popular": f"item_{c.events('30d')}",
    "trending": f"item_{c.TREND}",
    "new": "item_age_days",
}


class UnknownItem(LookupError):
    """The release has no such item."""


class Metrics:
    """Prometheus metrics of one app."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "funnel_requests_total", "Requests by endpoint and status", ["endpoint", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "funnel_stage_seconds", "Time of each stage", ["stage"], registry=self.registry,
            buckets=[0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5],
        )  # fmt: skip
        self.degraded = Counter("funnel_degraded_total", "Losses of quality", ["reason"], registry=self.registry)
        self.events = Counter("funnel_events_total", "Events by outcome", ["outcome"], registry=self.registry)
        self.release = Gauge("funnel_release_info", "The release being served", ["release"], registry=self.registry)

    @contextmanager
    def stage(self, name: str) -> Any:
        """Time a block."""
        start = time.perf_counter()
        yield
        self.seconds.labels(name).observe(time.perf_counter() - start)


class Engine:
    """Answers the API's questions."""

    def __init__(self, release: Release, workspace: Workspace) -> None:
        self.release = release
        self.metrics = Metrics()
        self.metrics.release.labels(release.id).set(1)
        self.online = OnlineFeatures(workspace, release.codec)
        self.log = EventLog(workspace)
        try:
            self.items = release.items.with_activity(self.online.item_activity())
        except OnlineStoreUnavailable:
            self.items = release.items  # counts as of the release, until the next start
        self.recommend(RecommendationRequest(user_id="warm-up", k=1))

    def user_features(self, user_id: str) -> UserFeatures:
        """Return what the online store knows of a user."""
        return self.online.user(user_id, time.time())

    def recommend(self, request: RecommendationRequest) -> RecommendationResponse:
        """Serve one request.

        Raises:
            UnknownAttribute: a filter names an attribute that items do not have.

        """
        recommender, codec, now = self.release.recommender, self.release.codec, time.time()
        recommender.filters.check(request.filters, self.items)
        degraded: list[Degradation] = []
        with self.metrics.stage("features"):
            try:
                features = self.online.user(request.user_id, now)
                columns = features.columns
                if not features.known:
                    degraded.append("unknown_user")
            except OnlineStoreUnavailable:
                columns = no_features(request.user_id, codec)
                degraded.append("online_store_unavailable")
        rules = RequestRules(request.k, tuple(request.exclude), request.filters)
        with self.metrics.stage("recommend"):
            users = self.release.reader.read(columns, np.array([now]))
            lists, ranked, _ = recommender.recommend_ranked(users, [rules], self.items)
        result = lists[0]
        degraded += result.degraded
        for reason in degraded:
            self.metrics.degraded.labels(reason).inc()
        explained = self._explain(result, ranked) if request.explain else [None] * len(result.items)
        items = [
            RecommendedItem(item_id=self._id(code), score=_finite(score), sources=sources, explain=explanation)
            for code, score, sources, explanation in zip(
                result.items, result.scores, result.sources, explained, strict=True
            )
        ]
        return RecommendationResponse(
            request_id=uuid.uuid4().hex,
            release=self.release.id,
            items=items,
            degraded=list(degraded),
            filtered=result.removed if request.explain else None,
        )

    def similar(self, item_id: str, k: int) -> SimilarResponse:
        """Return items like another: co-visited ones first, then the nearest vectors.

        Raises:
            UnknownItem: the release has no such item.

        """
        code = self.release.codec.items.code(item_id)
        if code == 0:
            raise UnknownItem(item_id)
        retrieval = self.release.retrieval
        available = self.items.available(time.time())
        near, similarity = retrieval.retriever.neighbours[code], retrieval.retriever.similarities[code]
        found = [
            (int(other), float(score), "similar")
            for other, score in zip(near, similarity, strict=True)
            if other > 0 and available[other]
        ]
        if len(found) < k:
            scores, rows = retrieval.retriever.index.search(
                np.ascontiguousarray(retrieval.vectors[code : code + 1]), min(k + len(found) + 1, len(self.items) - 1)
            )
            known = {code, *(other for other, _, _ in found)}
            found += [
                (int(row) + 1, float(score), "two_tower")
                for row, score in zip(rows[0], scores[0], strict=True)
                if row >= 0 and row + 1 not in known and available[row + 1]
            ]
        items = [RecommendedItem(item_id=self._id(o), score=s, sources=[source]) for o, s, source in found[:k]]
        return SimilarResponse(release=self.release.id, items=items)

    def accept(self, raw: Sequence[dict[str, Any]]) -> EventsResponse:
        """Check events one by one and append the good ones to the log.

        Raises:
            OnlineStoreUnavailable: the log did not take them; repeating the call is safe.

        """
        good, rejected = [], []
        now = time.time()
        for index, fields in enumerate(raw):
            try:
                good.append(self._checked(fields, now))
            except ValueError as error:
                rejected.append(Rejected(index=index, reason=_reason(error)))
        appended = self.log.append(good)
        for outcome, count in (("accepted", appended.accepted), ("rejected", len(rejected))):
            self.metrics.events.labels(outcome).inc(count)
        return EventsResponse(accepted=appended.accepted, duplicates=appended.duplicates, rejected=rejected)

    def _checked(self, fields: dict[str, Any], now: float) -> dict[str, Any]:
        event = Event.model_validate(fields)
        if event.type not in self.release.codec.spec.events.types:
            raise ValueError(f"unknown type '{event.type}'; known: {self.release.codec.spec.event_types}")
        moment = _epoch(event.timestamp)
        if not moment > now - _OLDEST_EVENT_S:
            raise ValueError("timestamp is more than 7 days ago")
        if moment > now + _CLOCK_SKEW_S:
            raise ValueError("timestamp is in the future")
        return {**event.model_dump(exclude_none=True), "timestamp": moment}

    def _explain(self, result: Recommendation, ranked: Ranked) -> list[dict[str, Any] | None]:
        names = self.release.codec.numeric
        heads = self.release.codec.spec.event_types
        explanations: list[dict[str, Any] | None] = []
        for row, sources, score in zip(result.rows, result.sources, result.scores, strict=False):
            numeric, categorical = ranked.numeric[row], ranked.categorical[row]
            top = self.release.recommender.ranker.explain(numeric, categorical, _TOP_FEATURES)
            explanations.append(
                {
                    "sources": {s: _finite(numeric[names.index(_SOURCE_FEATURES[s])]) for s in sources},
                    "rank_score": _finite(score),
                    "probabilities": dict(zip(heads, map(_finite, ranked.probabilities[row]), strict=True)),
                    "features": [{"feature": name, "contribution": _finite(value)} for name, value in top],
                }
            )
        backfilled = len(result.items) - len(explanations)
        return explanations + [{"sources": {"backfill": None}} for _ in range(backfilled)]

    def _id(self, code: int) -> str:
        return self.release.codec.items.values[code - 1]


def _finite(value: Any) -> float:
    number = float(value)
    return number if math.isfinite(number) else 0.0


def _epoch(moment: float | str) -> float:
    if isinstance(moment, str):
        try:
            stamp = pd.Timestamp(moment)
        except (ValueError, OverflowError):
            raise ValueError("timestamp is neither epoch seconds nor ISO 8601") from None
        if pd.isna(stamp):
            raise ValueError("timestamp is neither epoch seconds nor ISO 8601")
        return float((stamp.tz_localize("UTC") if stamp.tzinfo is None else stamp).timestamp())
    if not math.isfinite(moment):
        raise ValueError("timestamp is not a finite number")
    return float(moment)


def _reason(error: ValueError) -> str:
    errors = getattr(error, "errors", None)
    if errors is None:
        return str(error)
    return "; ".join(f"{'.'.join(map(str, problem['loc'])) or 'event'}: {problem['msg']}" for problem in errors())
