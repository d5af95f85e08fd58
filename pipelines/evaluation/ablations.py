"""The funnel without one of its parts, as a server could run it without a new training."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from feature_repo import columns as c
from feature_repo.arrays import Float32Array, Int64Array
from feature_repo.declarations.views import ONLINE_USERS
from pipelines.evaluation.evaluated_models import Funnel
from pipelines.evaluation.metrics import K
from pipelines.evaluation.replayed_requests import Lists, Model, PastRequests
from pipelines.features.point_in_time import DAY_S, PointInTime
from pipelines.training.past_requests import InteractionHistory, Requests, users_at
from ranking.models.scorer import CalibratedRanker
from ranking.rows import ItemRows, PairRows
from serving.recommender.candidates import SOURCES, Retriever
from serving.recommender.codec import Codec
from serving.recommender.item_table import ItemTable
from serving.recommender.recommender import Recommender
from serving.recommender.users import Columns
from serving.releases.release import Release

ChangeUsers = Callable[[PastRequests], Columns]
"""Returns the users' features as the ablated funnel knows them."""

ChangeItems = Callable[[ItemTable], ItemTable]
"""Returns the item table as the ablated funnel knows it."""


def ablations(
    release: Release, features: PointInTime, requests: Requests, interactions: InteractionHistory
) -> dict[str, Model]:
    """Return the funnel without each of its parts, named by what is missing.

    The parts are the ranker, each candidate source in use, each view of users, and what is known of
    items; ``streaming`` knows users as they were at the day's midnight.

    A view that is missing is what serving makes of one past its TTL: every value of it counts as
    unknown. Item vectors were made with the items' attributes and keep them; only the ranker goes
    without. Items' counts and ages are missing to the sources that use them too.
    """
    recommender = release.recommender
    unranked = _with_parts(release, ranker=_CosineRanker(recommender.ranker))
    models: dict[str, Model] = {"ranker": Funnel(unranked, K)}

    for source in SOURCES:
        if getattr(recommender.retriever.quota, source, 0):
            retriever = _without_source(recommender.retriever, source)
            models[f"candidates: {source}"] = Funnel(_with_parts(release, retriever=retriever), K)

    models["streaming"] = _ChangedUsers(release, interactions, _AsOfMidnight(features, requests))
    for view, names in _user_views(release.codec).items():
        models[view] = _ChangedUsers(release, interactions, _WithoutFeatures(names))

    if release.codec.spec.item_attributes:
        models["item attributes (ranker)"] = _ChangedItems(_with_parts(release), _no_attributes)
    models["item_activity"] = _ChangedItems(_with_parts(release), _no_activity)
    return models


def _user_views(codec: Codec) -> dict[str, list[str]]:
    """Return the views of users that a release reads, with their features."""
    views = {
        "user_history": [c.HISTORY_ITEMS, c.HISTORY_TIMES],
        "user_activity": [*codec.user_counts, c.FIRST_EVENT_AT, c.LAST_EVENT_AT],
        "user_affinity": [c.CATEGORIES, c.CATEGORY_SHARES] if codec.spec.category else [],
        "user_profile (attributes)": list(codec.user_attributes.kinds),
    }
    for view, name in codec.user_reads:
        views.setdefault(view, [])
        if name not in views[view]:
            views[view].append(name)
    return {view: names for view, names in views.items() if names}


def _with_parts(
    release: Release, ranker: Any = None, retriever: Retriever | None = None
) -> Recommender:
    """Return a recommender that shares all parts with the release's except those given."""
    whole = release.recommender
    return Recommender(
        tower=whole.tower,
        vectors=whole.vectors,
        retriever=retriever or whole.retriever,
        ranker=ranker or whole.ranker,
        rules=whole.rules,
        items=release.items,
    )


class _CosineRanker:
    """A stand-in for the ranker: orders candidates by the cosine of user and item vector."""

    def __init__(self, ranker: CalibratedRanker) -> None:
        self.schema = ranker.schema

    def for_items(self, _: ItemRows) -> Any:
        return self._score

    def _score(self, pairs: PairRows) -> tuple[Float32Array, Float32Array]:
        probabilities = np.zeros((len(pairs), len(self.schema.heads)), dtype=np.float32)
        return pairs.pair[:, 0], probabilities


class _EmptyIndex:
    """A stand-in for the index: finds nothing."""

    ntotal = 0

    def search(self, vectors: Float32Array, k: int, **_: Any) -> tuple[Float32Array, Int64Array]:
        shape = (len(vectors), k)
        return np.zeros(shape, dtype=np.float32), np.full(shape, -1, dtype=np.int64)


def _without_source(retriever: Retriever, source: str) -> Retriever:
    other = copy.copy(retriever)
    if source == "two_tower":
        other.index = _EmptyIndex()  # type: ignore[assignment]
    else:
        other.quota = retriever.quota.model_copy(update={source: 0})
    return other


class _ChangedUsers:
    """The funnel with other features of users; what they have seen stays known."""

    def __init__(
        self, release: Release, interactions: InteractionHistory, change: ChangeUsers
    ) -> None:
        self._funnel = Funnel(release.recommender, K)
        self._reader = release.reader
        self._interactions = interactions
        self._change = change

    def __call__(self, batch: PastRequests) -> Lists:
        users = users_at(self._reader, self._change(batch), batch.requests, self._interactions)
        return self._funnel.lists(batch, users)


class _WithoutFeatures:
    """Users' features with some missing."""

    def __init__(self, names: list[str]) -> None:
        self._names = names

    def __call__(self, batch: PastRequests) -> Columns:
        missing: dict[str, Any] = {name: [None] * len(batch.requests) for name in self._names}
        return {**batch.columns, **missing}


class _AsOfMidnight:
    """Users' features as a daily job leaves them; batches come in the order of the requests."""

    def __init__(self, features: PointInTime, requests: Requests) -> None:
        # A request is joined a microsecond before its time; the job's rows are stamped with the
        # midnight itself.
        midnight = requests.time // DAY_S * DAY_S + 1e-6
        self._parts = features.users(
            ONLINE_USERS, requests.user, np.minimum(midnight, requests.time)
        )
        self._rows = slice(0, 0)
        self._columns: Columns = {}

    def __call__(self, batch: PastRequests) -> Columns:
        first = int(batch.rows[0])
        last = int(batch.rows[-1])
        while first >= self._rows.stop:
            self._rows, self._columns = next(self._parts)
        part = slice(first - self._rows.start, last + 1 - self._rows.start)
        return {name: values[part] for name, values in self._columns.items()}


class _ChangedItems:
    """The funnel with another item table, which is made once for each day's table."""

    def __init__(self, recommender: Recommender, change: ChangeItems) -> None:
        self._funnel = Funnel(recommender, K)
        self._change = change
        self._last: tuple[ItemTable, ItemTable] | None = None

    def __call__(self, batch: PastRequests) -> Lists:
        if self._last is None or self._last[0] is not batch.items:
            self._last = (batch.items, self._change(batch.items))
        return self._funnel(replace(batch, items=self._last[1]))


def _no_attributes(items: ItemTable) -> ItemTable:
    old = items.encoded
    unknown = replace(
        old, first=np.zeros_like(old.first), numbers=np.full_like(old.numbers, np.nan)
    )
    return replace(
        items,
        encoded=unknown,
        categories=np.zeros_like(items.categories),
        activity=replace(items.activity, numeric=None),
    )


def _no_activity(items: ItemTable) -> ItemTable:
    never = np.full(len(items), np.nan)
    return items.with_activity(
        replace(
            items.activity,
            counts=np.full_like(items.activity.counts, np.nan),
            first_event_at=never,
            last_event_at=never,
            numeric=None,
        )
    )
