"""Feast entities, sources, feature views and services of one data set.

Which columns the views have follows from the dataset spec: its event types, windows and attributes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal

from feast import (
    Entity,
    FeatureService,
    FeatureView,
    Field,
    FileSource,
    OnDemandFeatureView,
    RequestSource,
)
from feast.data_format import ParquetFormat
from feast.data_source import DataSource
from feast.on_demand_feature_view import on_demand_feature_view
from feast.type_map import pa_to_feast_value_type
from feast.types import (
    FeastType,
    Float64,
    Int64,
    String,
    UnixTimestamp,
    from_value_type,
)

from feature_repo import columns as c
from feature_repo.aggregates.definition import AggregateView
from feature_repo.attribute_types import ATTRIBUTE_TYPES
from feature_repo.dataset import AttributeKind, DatasetSpec
from feature_repo.declarations.aggregate_views import declared_aggregates
from feature_repo.declarations.built_in import NEVER_STALE, built_in_aggregates
from feature_repo.declarations.checks import DeclaredView, without_experimental_warnings
from feature_repo.declare import item, user

Profile = Literal["local", "cluster"]

REQUEST_SOURCE = "request"
"""The request source of the built-in on-demand views."""

TOWER_USERS = "user_tower_v1"
"""The feature service of the user tower."""

ONLINE_USERS = "online_user_v1"
"""The feature service of users that serving reads."""

_FEAST_TYPES: dict[AttributeKind, FeastType] = {
    kind: from_value_type(pa_to_feast_value_type(str(arrow)))
    for kind, arrow in ATTRIBUTE_TYPES.items()
}


def item_profile_schema(spec: DatasetSpec) -> dict[str, FeastType]:
    """Return the features of ``item_profile`` and their types (empty: there is no such view)."""
    features = {name: _FEAST_TYPES[kind] for name, kind in spec.item_attributes.items()}
    if spec.items and spec.items.available_from:
        features[c.AVAILABLE_FROM] = UnixTimestamp
    if spec.items and spec.items.available_until:
        features[c.AVAILABLE_UNTIL] = UnixTimestamp
    return features


def user_profile_schema(spec: DatasetSpec) -> dict[str, FeastType]:
    """Return the features of ``user_profile`` and their types (empty: there is no such view)."""
    return {name: _FEAST_TYPES[kind] for name, kind in spec.user_attributes.items()}


@dataclass(frozen=True)
class BuiltIn:
    """The built-in Feast objects of a data set.

    Attributes:
        objects: entities, sources and views.
        aggregates: what is computed from events.
        optional: views that ranking models read only where a ``features.py`` says so.
        ranking: the views that the ranking models read.
        online: the views of users that serving reads.
        user_tower: the views that the user tower reads.
        source: returns the source of an offline table.

    """

    objects: list[Any]
    aggregates: tuple[AggregateView, ...]
    optional: tuple[DeclaredView, ...]
    ranking: list[Any]
    online: list[Any]
    user_tower: list[Any]
    source: Callable[[str], DataSource]

    def services(
        self, *, ranking: Sequence[Any], online: Sequence[Any], user_tower: Sequence[Any]
    ) -> list[FeatureService]:
        """Return the feature services.

        ``ranking`` is all that it reads; ``online`` and ``user_tower`` are read beside the
        built-in views.
        """
        # User and item views share names such as events_7d: read ranking_v1 with
        # full_feature_names=True.
        return [
            FeatureService(name="ranking_v1", features=list(ranking)),
            FeatureService(name=ONLINE_USERS, features=[*self.online, *online]),
            FeatureService(name=TOWER_USERS, features=[*self.user_tower, *user_tower]),
        ]


def built_in(spec: DatasetSpec, features: Path, profile: Profile = "local") -> BuiltIn:
    """Return the built-in Feast objects of a data set.

    Args:
        spec: the data set.
        features: folder with one folder of Parquet per offline table.
        profile: ``local`` reads the tables with DuckDB, ``cluster`` with Spark.

    """

    def view(
        name: str, entity: Entity, schema: dict[str, FeastType], ttl: timedelta
    ) -> FeatureView:
        return FeatureView(
            name=name,
            entities=[entity],
            ttl=ttl,
            schema=_fields(entity, schema),
            source=source(name, features, profile),
        )

    computed = [
        declared_aggregates(declared, spec, source(declared.name, features, profile))
        for declared in built_in_aggregates(spec)
    ]
    by_name = {of.name: of.registered for of in computed}
    activity, item_activity = by_name["user_activity"], by_name["item_activity"]
    seen, affinity = by_name["user_seen"], [by_name[n] for n in ("user_affinity",) if n in by_name]
    profiles = [
        view("user_profile", user, s, NEVER_STALE) for s in [user_profile_schema(spec)] if s
    ]
    item_profiles = [
        view("item_profile", item, s, NEVER_STALE) for s in [item_profile_schema(spec)] if s
    ]
    request = RequestSource(name=REQUEST_SOURCE, schema=[Field(name=c.REQUEST_TIME, dtype=Int64)])
    with without_experimental_warnings():
        history = by_name["user_history"][[c.HISTORY_ITEMS, c.HISTORY_TIMES]]  # without its state
        moments = activity[[c.FIRST_EVENT_AT, c.LAST_EVENT_AT]]
    request_time = _request_time_view(request, moments)
    return BuiltIn(
        objects=[user, item, *by_name.values(), *profiles, *item_profiles, request_time],
        aggregates=tuple(of.aggregates for of in computed if of.aggregates),
        optional=tuple(of for of in computed if of.name == "user_recent"),
        ranking=[*profiles, activity, *affinity, *item_profiles, item_activity, request_time],
        online=[*profiles, history, activity, *affinity, seen, request_time],
        user_tower=[*profiles, history],
        source=partial(source, features=features, profile=profile),
    )


def _fields(entity: Entity, schema: dict[str, FeastType]) -> list[Field]:
    # The join key is part of the schema: without it Feast opens the files to infer its type.
    return [Field(name=entity.join_key, dtype=String)] + [
        Field(name=n, dtype=t) for n, t in schema.items()
    ]


def source(table: str, features: Path, profile: Profile) -> DataSource:
    """Return the source of one offline table below ``features``."""
    path = str(features / table)
    if profile == "local":
        return FileSource(
            name=f"{table}_source",
            path=path,
            file_format=ParquetFormat(),
            timestamp_field=c.EVENT_TIMESTAMP,
        )
    from feast.infra.offline_stores.contrib.spark_offline_store.spark_source import SparkSource

    return SparkSource(
        name=f"{table}_source", path=path, file_format="parquet", timestamp_field=c.EVENT_TIMESTAMP
    )


def _request_time_view(request: RequestSource, moments: FeatureView) -> OnDemandFeatureView:
    @on_demand_feature_view(  # type: ignore[untyped-decorator]
        sources=[request, moments],
        schema=[
            Field(name="hour_of_day", dtype=Float64),
            Field(name="day_of_week", dtype=Float64),
            Field(name="user_recency_days", dtype=Float64),
            Field(name="user_tenure_days", dtype=Float64),
        ],
        mode="python",
    )
    def request_time(inputs: dict[str, Any]) -> dict[str, Any]:
        # Feast keeps this function's source in its registry and runs it by itself: it brings its
        # imports along.
        import numpy as np

        from feature_repo import columns as c
        from feature_repo.request_time import request_time_features

        names = (c.REQUEST_TIME, c.FIRST_EVENT_AT, c.LAST_EVENT_AT)
        moments = [
            np.array([np.nan if v is None else v for v in inputs[name]], dtype=np.float64)
            for name in names
        ]
        features = request_time_features(*moments)
        return {
            name: [None if v != v else v for v in values.tolist()]
            for name, values in features.items()
        }

    return request_time
