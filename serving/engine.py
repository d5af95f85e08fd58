"""What the HTTP app calls: a release, the online store and the clock put together, never failing a request."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from feature_repo import columns as c
from feature_repo.encoding import Codes, Floats
from feature_repo.workspace import Workspace
from serving.events import open_log
from serving.filters import RequestRules
from serving.impressions import Impression, ImpressionLog
from serving.intake import Intake
from serving.online import OnlineFeatures, OnlineStoreUnavailable, UserFeatures, no_features
from serving.recommender import Ranked, Recommendation
from serving.release import Release
from serving.schemas import (
    EventsResponse,
    RecommendationRequest,
    RecommendationResponse,
    RecommendedItem,
    SimilarResponse,
)

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
        self.age = Histogram(
            "funnel_feature_age_seconds", "Age of the rows read from the online store", ["view"],
            registry=self.registry, buckets=[0.25, 0.5, 1, 2, 5, 10, 60, 600, 3_600, 86_400, 604_800, 2_592_000],
        )  # fmt: skip
        self.impressions = Counter(
            "funnel_impressions_total", "Logged responses by outcome", ["outcome"], registry=self.registry
        )
        self.release = Gauge("funnel_release_info", "The release being served", ["release"], registry=self.registry)

    def observe_age(self, view: str, seconds: float) -> None:
        """Note the age of a feature row."""
        self.age.labels(view).observe(seconds)

    @contextmanager
    def stage(self, name: str) -> Any:
        """Time a block."""
        start = time.perf_counter()
        yield
        self.seconds.labels(name).observe(time.perf_counter() - start)


class Engine:
    """Answers the API's questions."""

    def __init__(self, release: Release, workspace: Workspace, *, log_impressions: bool = True) -> None:
        self.release = release
        self.impressions: ImpressionLog | None = None
        self.metrics = Metrics()
        self.metrics.release.labels(release.id).set(1)
        self.online = OnlineFeatures(workspace, release.items, self.metrics.observe_age)
        self.intake = Intake(open_log(workspace), release.codec.spec, self.metrics.events)
        self.items_as_of: str | None = None
        try:
            now = datetime.now(UTC)
            self.items = release.items.with_activity(self.online.item_activity(now.timestamp()))
            self.items_as_of = now.isoformat(timespec="microseconds")
        except OnlineStoreUnavailable:
            self.items = release.items  # counts as of the release, until the next start
        self.recommend(RecommendationRequest(user_id="warm-up", k=1))
        if log_impressions:
            self.impressions = ImpressionLog(workspace.impressions, self.metrics.impressions)

    def close(self) -> None:
        """Write the impressions that still wait."""
        if self.impressions:
            self.impressions.close()

    def user_features(self, user_id: str) -> UserFeatures:
        """Return what the online store knows of a user."""
        return self.online.user(user_id, time.time())

    def recommend(self, request: RecommendationRequest) -> RecommendationResponse:
        """Serve one request.

        Raises:
            UnknownAttribute: a filter names an attribute that items do not have.

        """
        recommender, codec, now = self.release.recommender, self.release.codec, time.time()
        table = self.items
        recommender.filters.check(request.filters, table)
        degraded: list[str] = []
        features: UserFeatures | None = None
        with self.metrics.stage("features"):
            try:
                features = self.online.user(request.user_id, now)
                columns = features.columns
                degraded += [f"stale_{view}" for view in features.stale]
                if not features.known:
                    degraded.append("unknown_user")
            except OnlineStoreUnavailable:
                columns = no_features(request.user_id, codec)
                degraded.append("online_store_unavailable")
        rules = RequestRules(request.k, tuple(request.exclude), request.filters)
        with self.metrics.stage("recommend"):
            users = self.release.reader.read(columns, np.array([now]))
            lists, ranked, _ = recommender.recommend_ranked(users, [rules], table)
        result = lists[0]
        degraded += result.degraded
        for reason in degraded:
            self.metrics.degraded.labels(reason).inc()
        numeric, categorical = ranked.rows(0, result.rows, table)
        explained: list[dict[str, Any] | None] = [None] * len(result.items)
        if request.explain:
            explained = self._explain(result, ranked, numeric, categorical)
        items = [
            RecommendedItem(item_id=self._id(code), score=_finite(score), sources=sources, explain=explanation)
            for code, score, sources, explanation in zip(
                result.items, result.scores, result.sources, explained, strict=True
            )
        ]
        response = RecommendationResponse(
            request_id=uuid.uuid4().hex,
            release=self.release.id,
            items=items,
            degraded=list(degraded),
            filtered=result.removed if request.explain else None,
        )
        if self.impressions:
            self.impressions.offer(
                _impression(request, response, now, features, self.items_as_of, result, numeric, categorical)
            )
        return response

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
        """Check events one by one and append the good ones to the log, see ``Intake``."""
        return self.intake.accept(raw)

    def _explain(
        self, result: Recommendation, ranked: Ranked, numerics: Floats, categoricals: Codes
    ) -> list[dict[str, Any] | None]:
        names = self.release.codec.numeric
        heads = self.release.codec.spec.event_types
        explanations: list[dict[str, Any] | None] = []
        shown = zip(result.rows, result.sources, result.scores, numerics, categoricals, strict=False)
        for row, sources, score, numeric, categorical in shown:
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


def _impression(
    request: RecommendationRequest,
    response: RecommendationResponse,
    now: float,
    features: UserFeatures | None,
    items_as_of: str | None,
    result: Recommendation,
    numeric: Floats,
    categorical: Codes,
) -> Impression:
    return Impression(
        request_id=response.request_id,
        user_id=request.user_id,
        time=now,
        release=response.release,
        k=request.k,
        degraded=response.degraded,
        position=features.position if features else None,
        row_position=features.row_position if features else None,
        items_as_of=items_as_of,
        item_ids=[item.item_id for item in response.items],
        scores=result.scores,
        sources=result.sources,
        numeric=numeric,
        categorical=categorical,
    )


def _finite(value: Any) -> float:
    number = float(value)
    return number if math.isfinite(number) else 0.0
