"""Answers: responses, explanations and logged impressions, made from lists of item codes."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from feature_repo import columns as c
from feature_repo.arrays import Float32Array, Int32Array
from feature_repo.events.stored import encode
from serving.api.schemas import (
    Explanation,
    RecommendationItem,
    RecommendationRequest,
    RecommendationResponse,
    SimilarItemsResponse,
)
from serving.impressions import Impression, filters_to_log
from serving.online.features import OnlineFeatures, UserFeatures
from serving.recommender.candidate_union import SourceBits
from serving.recommender.item_table import Activity, ItemTable
from serving.recommender.results import Ranked, Recommendation
from serving.releases.release import Release

_TOP_FEATURES = 8
_SOURCE_FEATURES = {
    "two_tower": "tower_score",
    "similar": "similar_score",
    "popular": f"item_{c.EVENTS_30D}",
    "trending": f"item_{c.TREND}",
    "new": "item_age_days",
}


class UnknownItem(LookupError):
    """The release has no such item."""


@dataclass(frozen=True)
class ServingSnapshot:
    """What requests are answered from; a request reads it once, so a swap does not affect it.

    Attributes:
        loaded: the release as it was loaded.
        release: the same with the items that were added since.
        online: reads of the online store.
        items: the item table, with added and without removed items and with the newest counters.
        activity: the newest counters, which may lack added items; None: those of the release.
        items_as_of: when the counters were read, ISO 8601; None: they are those of the release.

    """

    loaded: Release
    release: Release
    online: OnlineFeatures
    items: ItemTable
    activity: Activity | None = None
    items_as_of: str | None = None


@dataclass(frozen=True)
class Outcome:
    """What the recommender gave for one request.

    Attributes:
        time: of the user's features, epoch seconds.
        features: of the user; None: the online store did not answer.
        result: the list.
        ranked: the candidates of the whole batch; None: there are none, and the list is of popular
            items.
        row: index of the request in its batch.

    """

    time: float
    features: UserFeatures | None
    result: Recommendation
    ranked: Ranked | None
    row: int

    def sources(self) -> SourceBits:
        """Return the source bits of the request's candidates, uint8 ``[n]``."""
        if self.ranked is None:
            return np.zeros(0, dtype=np.uint8)
        return self.ranked.candidates.sources[self.ranked.candidates.rows(self.row)]


@dataclass(frozen=True)
class Answer:
    """A response with the outcome behind it and the ranker's inputs of the ranked items.

    ``numeric`` float32 ``[r, F]`` and ``categorical`` int32 ``[r, C]``.
    """

    response: RecommendationResponse
    outcome: Outcome
    numeric: Float32Array
    categorical: Int32Array


def make_answer(
    snapshot: ServingSnapshot, request: RecommendationRequest, outcome: Outcome
) -> Answer:
    """Return the response to a request with everything behind it."""
    result = outcome.result
    heads = snapshot.release.codec.spec.event_types
    numeric, categorical = _ranker_inputs(snapshot, outcome)

    items = [
        RecommendationItem(item_id=item_id, score=score, sources=sources)
        for item_id, score, sources in zip(
            snapshot.release.codec.items.names(result.items),
            _finites(result.scores),
            result.sources,
            strict=True,
        )
    ]
    response = RecommendationResponse(
        request_id=uuid.uuid4().hex,
        release=snapshot.release.id,
        items=items,
        degraded=[*_feature_losses(outcome.features, heads), *result.degraded],
    )
    answer = Answer(response, outcome, numeric, categorical)

    if request.explain:
        response["filtered"] = result.removed
        for item, explanation in zip(items, _explain(snapshot, answer), strict=True):
            item["explain"] = explanation
    return answer


def _ranker_inputs(snapshot: ServingSnapshot, outcome: Outcome) -> tuple[Float32Array, Int32Array]:
    """Return the ranker's inputs of the ranked items of a list, as in ``Answer``."""
    if outcome.ranked is None:
        codec = snapshot.release.codec
        numeric = np.zeros((0, len(codec.numeric)), np.float32)
        return numeric, np.zeros((0, len(codec.categorical)), np.int32)
    return outcome.ranked.rows(outcome.row, outcome.result.rows, snapshot.items)


def _explain(snapshot: ServingSnapshot, answer: Answer) -> list[Explanation]:
    """Return one explanation per item: of ranked items all, of others the source only."""
    release = snapshot.release
    names = release.codec.numeric
    heads = release.codec.spec.event_types
    result = answer.outcome.result
    ranked = answer.outcome.ranked
    probabilities = ranked.probabilities[result.rows] if ranked else ()

    explanations: list[Explanation] = []
    # The ranked items come first; the shorter arrays end the loop after them.
    for of_heads, sources, score, numeric, categorical in zip(
        probabilities,
        result.sources,
        result.scores,
        answer.numeric,
        answer.categorical,
        strict=False,
    ):
        top = release.recommender.ranker.explain(numeric, categorical, _TOP_FEATURES)
        explanations.append(
            {
                "sources": {
                    source: _finite(numeric[names.index(_SOURCE_FEATURES[source])])
                    if _SOURCE_FEATURES[source] in names
                    else None
                    for source in sources
                },
                "rank_score": _finite(score),
                "probabilities": dict(zip(heads, map(_finite, of_heads), strict=True)),
                "features": [
                    {"feature": name, "contribution": _finite(value)} for name, value in top
                ],
            }
        )

    unranked = result.sources[len(explanations) :]
    return explanations + [Explanation(sources=dict.fromkeys(sources)) for sources in unranked]


def similar_items(snapshot: ServingSnapshot, item_id: str, k: int) -> SimilarItemsResponse:
    """Return items like another: co-visited ones first, then the nearest vectors.

    Raises:
        UnknownItem: the release has no such item.

    """
    codec = snapshot.release.codec
    code = codec.items.code(item_id)
    if code == 0:
        raise UnknownItem(item_id)

    # The co-visited items that are available.
    retriever = snapshot.release.retrieval.retriever
    available = snapshot.items.available(time.time())
    similar = [
        (int(other), float(score), "similar")
        for other, score in zip(
            retriever.neighbours[code], retriever.similarities[code], strict=True
        )
        if other > 0 and available[other]
    ]

    # If they are too few, the nearest other items by vector.
    if len(similar) < k:
        vector = np.ascontiguousarray(snapshot.release.retrieval.vectors[code : code + 1])
        cosines, others = retriever.nearest(vector, k + len(similar) + 1)
        known = {code, *(other for other, _, _ in similar)}
        similar += [
            (int(other), float(cosine), "two_tower")
            for other, cosine in zip(others[0], cosines[0], strict=True)
            if other > 0 and other not in known and available[other]
        ]

    items = [
        RecommendationItem(item_id=codec.items.values[other - 1], score=score, sources=[source])
        for other, score, source in similar[:k]
    ]
    return SimilarItemsResponse(release=snapshot.release.id, items=items)


def impression_of(
    request: RecommendationRequest, answer: Answer, snapshot: ServingSnapshot
) -> Impression:
    """Return what is logged of an answer."""
    response = answer.response
    result = answer.outcome.result
    features = answer.outcome.features
    return Impression(
        request_id=response["request_id"],
        user_id=request.user_id,
        time=answer.outcome.time,
        release=response["release"],
        k=request.k,
        degraded=response["degraded"],
        position=features.position if features else None,
        row_position=features.row_position if features else None,
        items_as_of=snapshot.items_as_of,
        filters=filters_to_log(request.filters),
        context=encode(request.context) if request.context else None,
        added=snapshot.items.added,
        item_ids=[item["item_id"] for item in response["items"]],
        scores=result.scores,
        sources=result.sources,
        numeric=answer.numeric,
        categorical=answer.categorical,
    )


def _feature_losses(features: UserFeatures | None, event_types: Sequence[str]) -> list[str]:
    """Return what is missing of a user's features, in words of ``Degradation``."""
    if features is None:
        return ["online_store_unavailable"]
    losses = [f"stale_{view}" for view in features.stale]
    losses += [f"missing_{name}" for name in features.gone]
    if not features.known:
        losses.append("unknown_user")
    seen = (features.columns.get(c.seen(kind), [None])[0] for kind in event_types)
    if any(items is not None and len(items) >= c.SEEN_LENGTH for items in seen):
        losses.append("seen_truncated")
    return losses


def _finites(values: Float32Array) -> list[float]:
    return np.where(np.isfinite(values), values, 0.0).tolist()


def _finite(value: Any) -> float:
    number = float(value)
    return number if math.isfinite(number) else 0.0
