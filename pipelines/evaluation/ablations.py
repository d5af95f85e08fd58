"""The funnel with one part switched off, as a server could without a new training."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from feature_repo import columns as c
from feature_repo.dataset import DatasetSpec
from feature_repo.encoding import Floats
from feature_repo.views import (
    HISTORY_SCHEMA,
    ONLINE_USERS,
    user_activity_schema,
    user_profile_schema,
)
from pipelines.evaluation.evaluated_models import Funnel
from pipelines.evaluation.metrics import K
from pipelines.evaluation.replayed_requests import Lists, Model, PastRequests
from pipelines.features.point_in_time import DAY_S, PointInTime
from pipelines.training.past_requests import InteractionHistory, Requests, users_at
from ranking.models.scorer import CalibratedRanker
from ranking.rows import ItemRows, PairRows
from serving.recommender.candidates import SOURCES, Retriever
from serving.recommender.item_table import ItemTable
from serving.recommender.recommender import Recommender
from serving.recommender.users import Columns
from serving.releases.release import Release


def ablations(
    release: Release, features: PointInTime, requests: Requests, interactions: InteractionHistory
) -> dict[str, Model]:
    """Return the funnel without its ranker, each source it uses, each view of users, and what is known of items.

    Each is named by what it goes without; ``streaming`` knows users as they were at the day's
    midnight.

    A view that is missing is what serving makes of one past its TTL: every value of it counts as
    unknown. Item vectors were made with the items' attributes and keep them; only the ranker goes
    without. Items' counts and ages are missing to the sources that go by them too.
    """
    whole = release.recommender
    models: dict[str, Model] = {
        "ranker": Funnel(_with(release, ranker=_TowerOrder(whole.ranker)), K)
    }
    for source in SOURCES:
        if getattr(whole.retriever.quota, source, 0):
            retriever = _without_source(whole.retriever, source)
            models[f"candidates: {source}"] = Funnel(_with(release, retriever=retriever), K)
    models["streaming"] = _OtherUsers(release, interactions, _AsOfMidnight(features, requests))
    for view, names in _user_views(release.codec.spec).items():
        models[view] = _OtherUsers(release, interactions, _Without(names))
    if release.codec.spec.item_attributes:
        models["item attributes (ranker)"] = _OtherItems(_with(release), _no_attributes)
    models["item_activity"] = _OtherItems(_with(release), _no_activity)
    return models


def _user_views(spec: DatasetSpec) -> dict[str, list[str]]:
    views = {
        "user_history": list(HISTORY_SCHEMA),
        "user_activity": list(user_activity_schema(spec)),
        "user_affinity": [c.CATEGORIES, c.CATEGORY_SHARES] if spec.category else [],
        "user_profile (attributes)": list(user_profile_schema(spec)),
    }
    return {view: names for view, names in views.items() if names}


def _with(release: Release, ranker: Any = None, retriever: Retriever | None = None) -> Recommender:
    """Return a recommender that shares all but one part with the release's."""
    whole = release.recommender
    parts = (retriever or whole.retriever, ranker or whole.ranker)
    return Recommender(whole.tower, whole.vectors, *parts, whole.rules, release.items)


class _TowerOrder:
    """In the ranker's place: candidates by the cosine of user and item vector."""

    def __init__(self, ranker: CalibratedRanker) -> None:
        self.schema = ranker.schema

    def for_items(self, _: ItemRows) -> Any:
        return self._score

    def _score(self, pairs: PairRows) -> tuple[Floats, Floats]:
        return pairs.pair[:, 0], np.zeros((len(pairs), len(self.schema.heads)), dtype=np.float32)


class _NoIndex:
    """In the index's place: finds nothing."""

    ntotal = 0

    def search(self, vectors: Floats, k: int, **_: Any) -> tuple[Floats, npt.NDArray[np.int64]]:
        return np.zeros((len(vectors), k), dtype=np.float32), np.full(
            (len(vectors), k), -1, dtype=np.int64
        )


def _without_source(retriever: Retriever, source: str) -> Retriever:
    other = copy.copy(retriever)
    if source == "two_tower":
        other.index = _NoIndex()  # type: ignore[assignment]
    else:
        other.quota = retriever.quota.model_copy(update={source: 0})
    return other


class _OtherUsers:
    """The funnel with other features of users; what they have seen stays known."""

    def __init__(
        self,
        release: Release,
        interactions: InteractionHistory,
        change: Callable[[PastRequests], Columns],
    ) -> None:
        self._funnel = Funnel(release.recommender, K)
        self._reader, self._interactions, self._change = release.reader, interactions, change

    def __call__(self, batch: PastRequests) -> Lists:
        users = users_at(self._reader, self._change(batch), batch.requests, self._interactions)
        return self._funnel.lists(batch, users)


class _Without:
    """Users' features with some missing."""

    def __init__(self, names: list[str]) -> None:
        self._names = names

    def __call__(self, batch: PastRequests) -> Columns:
        missing: dict[str, Any] = {name: [None] * len(batch.requests) for name in self._names}
        return {**batch.columns, **missing}


class _AsOfMidnight:
    """Users' features as a daily job leaves them."""

    def __init__(self, features: PointInTime, requests: Requests) -> None:
        # A request is joined a microsecond before its time, and the job's rows are stamped with the
        # midnight itself.
        midnight = requests.time // DAY_S * DAY_S + 1e-6
        self._parts = features.users(
            ONLINE_USERS, requests.user, np.minimum(midnight, requests.time)
        )
        self._rows = slice(0, 0)
        self._columns: Columns = {}

    def __call__(self, batch: PastRequests) -> Columns:
        while batch.rows[0] >= self._rows.stop:  # batches come in the order of the requests
            self._rows, self._columns = next(self._parts)
        part = slice(
            int(batch.rows[0]) - self._rows.start, int(batch.rows[-1]) + 1 - self._rows.start
        )
        return {name: values[part] for name, values in self._columns.items()}


class _OtherItems:
    """The funnel with something of all items missing; the tables of a day are made once."""

    def __init__(self, recommender: Recommender, change: Any) -> None:
        self._funnel, self._change = Funnel(recommender, K), change
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
    categories = np.zeros_like(items.categories)
    return replace(
        items,
        encoded=unknown,
        categories=categories,
        activity=replace(items.activity, numeric=None),
    )


def _no_activity(items: ItemTable) -> ItemTable:
    never = np.full(len(items), np.nan)
    counts = np.full_like(items.activity.counts, np.nan)
    return items.with_activity(
        replace(
            items.activity, counts=counts, first_event_at=never, last_event_at=never, numeric=None
        )
    )
