"""Aggregates of events: from a Feast view with aggregations to what Funnel computes."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from typing import cast, get_args

from feast import Field, PushSource, StreamFeatureView
from feast.aggregation import Aggregation
from feast.data_source import DataSource
from feast.types import FeastType, Float64, Int64, String

from feature_repo import columns as c
from feature_repo.aggregates.definition import MICROS, Aggregate, AggregateView, Function
from feature_repo.dataset import DatasetSpec
from feature_repo.declarations.checks import (
    ENTITIES,
    NAME,
    NAME_RULE,
    DeclaredView,
    entity_of,
    without_experimental_warnings,
)
from feature_repo.declare import EVENT_COLUMNS, EVENT_TYPES_TAG, events

_LEAST_WINDOW = timedelta(minutes=1)


def declared_aggregates(
    view: StreamFeatureView, spec: DatasetSpec, table: DataSource
) -> DeclaredView:
    """Return a view of aggregates, registered over the table of its values.

    Raises:
        ValueError: Funnel cannot compute it.

    """
    entity = entity_of(view)
    if view.stream_source != events:
        raise ValueError("its source is 'events' of feature_repo.declare")
    if view.ttl:
        raise ValueError("its values have no ttl: a time window forgets by itself")
    if not view.aggregations:
        raise ValueError("it has no aggregations")
    unknown = sorted(set(event_types(view)) - set(spec.event_types))
    if unknown:
        raise ValueError(f"event types {unknown} are not among {spec.event_types}")
    for aggregation in view.aggregations:
        problem = _problem(aggregation, spec)
        if problem:
            raise ValueError(f"aggregation '{aggregation.name}': {problem}")
    definition = definition_of(view)
    names = [aggregate.name for aggregate in definition.aggregates]
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise ValueError(f"the name '{twice[0]}' is taken; choose another")

    fields = [Field(name=entity.join_key, dtype=String)]
    fields += [Field(name=name, dtype=kind) for name, kind in feature_types(definition).items()]
    with without_experimental_warnings():
        registered = StreamFeatureView(
            name=view.name,
            entities=[entity],
            ttl=view.ttl,
            schema=fields,
            source=PushSource(name=f"{view.name}_push", batch_source=table),
            aggregations=view.aggregations,
            timestamp_field=c.EVENT_TIMESTAMP,
            tags=view.tags,
            description=view.description,
            owner=view.owner,
        )
    return DeclaredView(entity.join_key, tuple(names), registered, definition)


def _problem(aggregation: Aggregation, spec: DatasetSpec) -> str | None:
    """Return why Funnel cannot compute an aggregation; None: it can."""
    window = aggregation.time_window
    functions = list(get_args(Function))
    of_value = aggregation.column == c.VALUE
    if not NAME.fullmatch(aggregation.resolved_name(window)):
        return NAME_RULE
    if aggregation.function not in functions:
        return f"the function is one of {functions}, not '{aggregation.function}'"
    if aggregation.column not in ("", *EVENT_COLUMNS):
        return f"events have no column '{aggregation.column}', only {list(EVENT_COLUMNS)}"
    if aggregation.function != "count" and not of_value:
        return f"'{aggregation.function}' takes column '{c.VALUE}'"
    if of_value and not spec.has_value:
        return "the events of dataset.toml have no value"
    if window is not None and window < _LEAST_WINDOW:
        return "a time window is at least a minute, or None for all time"
    if aggregation.slide_interval not in (None, window):
        return "slide_interval is not used: a window slides by a sixtieth of its length"
    return None


def event_types(view: StreamFeatureView) -> tuple[str, ...]:
    """Return the event types that a view's aggregates are of; empty: all."""
    names = view.tags.get(EVENT_TYPES_TAG, "").split(",")
    return tuple(name.strip() for name in names if name.strip())


def definition_of(view: StreamFeatureView) -> AggregateView:
    """Return the definition of a view that ``declared_aggregates`` does not refuse."""
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
