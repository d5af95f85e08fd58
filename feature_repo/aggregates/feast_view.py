"""Between a Feast view with aggregations and the definition that Funnel computes."""

from __future__ import annotations

from typing import cast

from feast import StreamFeatureView
from feast.types import FeastType, Float64, Int64, String

from feature_repo import columns as c
from feature_repo.aggregates.definition import MICROS, Aggregate, AggregateView, Function
from feature_repo.declare import EVENT_TYPES_TAG, item, user

ENTITIES = {entity.name: entity for entity in (user, item)}
"""Entities whose events are aggregated, by name."""


def event_types(view: StreamFeatureView) -> tuple[str, ...]:
    """Return the event types that a view's aggregates are of; empty: all."""
    names = view.tags.get(EVENT_TYPES_TAG, "").split(",")
    return tuple(name.strip() for name in names if name.strip())


def definition_of(view: StreamFeatureView) -> AggregateView:
    """Return the definition of a view that ``declared.aggregate_view`` does not refuse."""
    types = event_types(view)
    aggregates = []
    for aggregation in view.aggregations:
        window = aggregation.time_window
        aggregates.append(
            Aggregate(
                name=aggregation.resolved_name(window),
                function=cast(Function, aggregation.function),
                of_value=aggregation.column == c.VALUE,
                window=None if window is None else round(window.total_seconds() * MICROS),
                types=types,
            )
        )
    return AggregateView(view.name, ENTITIES[view.entities[0]].join_key, tuple(aggregates))


def feature_types(view: AggregateView) -> dict[str, FeastType]:
    """Return the columns of a view of aggregates and their types."""
    types: dict[str, FeastType] = {
        aggregate.name: Int64 if aggregate.is_integer else Float64 for aggregate in view.aggregates
    }
    return types | {view.state_column: String}
