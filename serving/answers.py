"""From lists of codes to what is said of them: responses, explanations and impressions."""

from __future__ import annotations

import math
import time
import uuid
from dataclasses import dataclass
from typing import Any

import numpy as np

from feature_repo import columns as c
from feature_repo.arrays import Float32Array, Int32Array
from serving.api.schemas import (
    Explanation,
    RecommendationItem,
    RecommendationRequest,
    RecommendationResponse,
    SimilarItemsResponse,
)
from serving.impressions import Impression, filters_to_log
from serving.online.features import OnlineFeatures, UserFeatures
from serving.recommender.item_table import Activity, ItemTable
from serving.recommender.recommender import Ranked, Recommendation
from serving.releases.release import Release

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


@dataclass(frozen=True)
class ServingSnapshot:
    """What a request is answered from, read once a request: a swap in the middle of it changes nothing for it.

    ``loaded`` is the release as it was loaded, ``release`` and ``items`` have what was added since;
    ``activity`` is of the newest counters, which may not have that (None: those of the release).
    """

    loaded: Release
    release: Release
    online: OnlineFeatures
    items: ItemTable
    activity: Activity | None = None
    items_as_of: str | None = None


@dataclass(frozen=True)
class Answer:
    """A response with everything behind it."""

    response: RecommendationResponse
    time: float
    features: UserFeatures | None
    result: Recommendation
    ranked: Ranked | None
    row: int
    numeric: Float32Array
    categorical: Int32Array


def make_answer(
    snapshot: ServingSnapshot,
    request: RecommendationRequest,
    now: float,
    features: UserFeatures | None,
    result: Recommendation,
    ranked: Ranked | None,
    row: int,
) -> Answer:
    """Return the response to a request with everything behind it.

    Args:
        snapshot: what it is answered from.
        request: who asked for what.
        now: the moment that features are of, epoch seconds.
        features: of the user; None: the online store did not answer.
        result: the list.
        ranked: the candidates behind it; None: there are none, the list is of popular items.
        row: which of the users of ``ranked``.

    """
    numeric, categorical = (
        ranked.rows(row, result.rows, snapshot.items) if ranked else _no_rows(snapshot.release)
    )
    names = snapshot.release.codec.items.names(result.items)
    items = [
        RecommendationItem(item_id=item_id, score=score, sources=sources)
        for item_id, score, sources in zip(
            names, _finites(result.scores), result.sources, strict=True
        )
    ]
    response = RecommendationResponse(
        request_id=uuid.uuid4().hex,
        release=snapshot.release.id,
        items=items,
        degraded=[*_losses(features), *result.degraded],
    )
    if request.explain:
        response["filtered"] = result.removed
        for item, explained in zip(
            items, _explain(snapshot, result, ranked, numeric, categorical), strict=True
        ):
            item["explain"] = explained
    return Answer(response, now, features, result, ranked, row, numeric, categorical)


def _explain(
    snapshot: ServingSnapshot,
    result: Recommendation,
    ranked: Ranked | None,
    numerics: Float32Array,
    categoricals: Int32Array,
) -> list[Explanation]:
    names, heads = snapshot.release.codec.numeric, snapshot.release.codec.spec.event_types
    explanations: list[Explanation] = []
    probabilities = ranked.probabilities[result.rows] if ranked else ()
    shown = zip(probabilities, result.sources, result.scores, numerics, categoricals, strict=False)
    for chances, sources, score, numeric, categorical in shown:
        top = snapshot.release.recommender.ranker.explain(numeric, categorical, _TOP_FEATURES)
        explanations.append(
            {
                "sources": {s: _finite(numeric[names.index(_SOURCE_FEATURES[s])]) for s in sources},
                "rank_score": _finite(score),
                "probabilities": dict(zip(heads, map(_finite, chances), strict=True)),
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
    code = snapshot.release.codec.items.code(item_id)
    if code == 0:
        raise UnknownItem(item_id)
    retrieval = snapshot.release.retrieval
    available = snapshot.items.available(time.time())
    near, similarity = retrieval.retriever.neighbours[code], retrieval.retriever.similarities[code]
    found = [
        (int(other), float(score), "similar")
        for other, score in zip(near, similarity, strict=True)
        if other > 0 and available[other]
    ]
    if len(found) < k:
        vector = np.ascontiguousarray(retrieval.vectors[code : code + 1])
        scores, others = retrieval.retriever.nearest(vector, k + len(found) + 1)
        known = {code, *(other for other, _, _ in found)}
        found += [
            (int(other), float(score), "two_tower")
            for other, score in zip(others[0], scores[0], strict=True)
            if other > 0 and other not in known and available[other]
        ]
    names = snapshot.release.codec.items.values
    items = [
        RecommendationItem(item_id=names[o - 1], score=s, sources=[source])
        for o, s, source in found[:k]
    ]
    return SimilarItemsResponse(release=snapshot.release.id, items=items)


def impression_of(
    request: RecommendationRequest, answer: Answer, snapshot: ServingSnapshot
) -> Impression:
    """Return what is logged of an answer."""
    response, features, result = answer.response, answer.features, answer.result
    return Impression(
        request_id=response["request_id"],
        user_id=request.user_id,
        time=answer.time,
        release=response["release"],
        k=request.k,
        degraded=response["degraded"],
        position=features.position if features else None,
        row_position=features.row_position if features else None,
        items_as_of=snapshot.items_as_of,
        filters=filters_to_log(request.filters),
        added=snapshot.items.added,
        item_ids=[item["item_id"] for item in response["items"]],
        scores=result.scores,
        sources=result.sources,
        numeric=answer.numeric,
        categorical=answer.categorical,
    )


def _losses(features: UserFeatures | None) -> list[str]:
    """Return what is missing of a user's features, in words of ``Degradation``."""
    if features is None:
        return ["online_store_unavailable"]
    stale = [f"stale_{view}" for view in features.stale]
    return stale if features.known else [*stale, "unknown_user"]


def _no_rows(release: Release) -> tuple[Float32Array, Int32Array]:
    codec = release.codec
    return np.zeros((0, len(codec.numeric)), np.float32), np.zeros(
        (0, len(codec.categorical)), np.int32
    )


def _finites(values: Float32Array) -> list[float]:
    return np.where(np.isfinite(values), values, 0.0).tolist()


def _finite(value: Any) -> float:
    number = float(value)
    return number if math.isfinite(number) else 0.0
