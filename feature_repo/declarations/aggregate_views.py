"""Aggregates of events: from a Feast view with aggregations to what Funnel computes."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from typing import Any, cast

from feast import Field, PushSource, StreamFeatureView
from feast.aggregation import Aggregation
from feast.data_source import DataSource
from feast.types import Array, FeastType, Float32, Float64, Int64, String

from feature_repo import columns as c
from feature_repo.aggregates.condition import BadCondition, columns_of
from feature_repo.aggregates.definition import LISTS, Aggregate, AggregateView, ValueKind
from feature_repo.aggregates.functions import FUNCTIONS, Name
from feature_repo.dataset import DatasetSpec
from feature_repo.declarations.checks import (
    ENTITIES,
    NAME,
    NAME_RULE,
    DeclaredView,
    entity_of,
    without_experimental_warnings,
)
from feature_repo.declare import (
    EVENT_COLUMNS,
    EVENT_TYPES_TAG,
    GRAIN_TAG,
    WHERE_TAG,
    daily,
    events,
)
from feature_repo.units import MICROS

_LEAST_WINDOW = timedelta(minutes=1)
_DAY = timedelta(days=1)
_LEAST_TREND = 4
_MOST_LISTED = 10_000
_OF_NUMBERS = ("sum", "mean", "min", "max", "last")
_TYPES: dict[ValueKind, FeastType] = {
    "integer": Int64,
    "number": Float64,
    "integers": Array(Int64),
    "numbers": Array(Float32),
    "texts": Array(String),
}


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
    if not view.aggregations:
        raise ValueError("it has no aggregations")
    problem = _tag_problem(view, spec)
    if problem:
        raise ValueError(problem)
    for aggregation in view.aggregations:
        problem = _problem(aggregation, spec, is_daily=is_daily(view))
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
    numeric = [one.name for one in definition.aggregates if one.kind in ("integer", "number")]
    return DeclaredView(entity.join_key, tuple(numeric), registered, definition)


def _tag_problem(view: StreamFeatureView, spec: DatasetSpec) -> str | None:
    """Return what is wrong with a view as a whole; None: nothing."""
    if view.ttl and not is_daily(view):
        return "its values have no ttl: a time window forgets by itself"
    if view.tags.get(GRAIN_TAG, "day") != "day":
        return f"its tag '{GRAIN_TAG}' is 'day', or there is none"
    names = {
        aggregation.resolved_name(aggregation.time_window) for aggregation in view.aggregations
    }
    for tag, text in view.tags.items():
        kind, _, feature = tag.partition(".")
        if kind not in (EVENT_TYPES_TAG, WHERE_TAG):
            continue
        if feature and feature not in names:
            return f"its tag '{tag}' is of no aggregation: it has {sorted(names)}"
        if kind == WHERE_TAG:
            problem = _condition_problem(text, spec)
            if problem:
                return f"its tag '{tag}': {problem}"
            continue
        unknown = sorted(set(_listed(text)) - set(spec.event_types))
        if unknown:
            return f"event types {unknown} are not among {spec.event_types}"
    return None


def _condition_problem(text: str, spec: DatasetSpec) -> str | None:
    try:
        read = columns_of(text)
    except BadCondition as error:
        return str(error)
    for name, types in read.items():
        if name not in _readable(spec) or name == c.TIMESTAMP:
            return f"events have no column '{name}' to compare, only {_readable(spec)}"
        if _is_number(name, spec) == (str in types):
            kind = "numbers" if _is_number(name, spec) else "text"
            return f"'{name}' holds {kind}"
    return None


def _readable(spec: DatasetSpec) -> list[str]:
    """Return the columns of events that aggregates can read."""
    return [*(n for n in EVENT_COLUMNS if spec.has_value or n != c.VALUE), *spec.context]


def _is_number(column: str, spec: DatasetSpec) -> bool:
    return column in (c.VALUE, c.DAY) or spec.context.get(column) == "numeric"


def _problem(aggregation: Aggregation, spec: DatasetSpec, *, is_daily: bool) -> str | None:
    """Return why Funnel cannot compute an aggregation; None: it can."""
    window = aggregation.time_window
    function, _, limit = aggregation.function.partition(":")
    column = aggregation.column or c.EVENT_ID
    columns = _readable(spec)
    if is_daily and spec.category and function in ("top", "top_shares"):
        columns.append(c.ITEM_CATEGORIES)
    if not NAME.fullmatch(aggregation.resolved_name(window)):
        return NAME_RULE
    if function not in FUNCTIONS:
        return f"the function is one of {list(FUNCTIONS)}, not '{aggregation.function}'"
    if column == c.VALUE and not spec.has_value:
        return "the events of dataset.toml have no value"
    if column not in columns:
        return f"events have no column '{column}', only {columns}"
    if (function in LISTS) != bool(limit) or (limit and not _is_length(limit)):
        return f"a list has a length of 1 to {_MOST_LISTED:,}, and only a list has one"
    is_number = _is_number(column, spec) and column != c.DAY
    if (
        function in _OF_NUMBERS
        and not is_number
        and not (column == c.TIMESTAMP and function in ("min", "max"))
    ):
        return f"'{function}' takes a column of numbers such as '{c.VALUE}'"
    if function in LISTS and (is_number or column in (c.TIMESTAMP, c.DAY)):
        return f"'{function}' takes a column of ids or text"
    pane = _DAY if is_daily else _LEAST_WINDOW
    if function == "trend" and (window is None or window < _LEAST_TREND * pane):
        return f"a trend has a time window of at least {_LEAST_TREND * pane}"
    if window is not None and window < _LEAST_WINDOW:
        return "a time window is at least a minute, or None for all time"
    if is_daily and window is not None and window % _DAY:
        return "the time windows of daily aggregates are of whole days, or None"
    if aggregation.slide_interval not in (None, window):
        return "slide_interval is not used: a window slides by a sixtieth of its length"
    return None


def _is_length(text: str) -> bool:
    return text.isdecimal() and 1 <= int(text) <= _MOST_LISTED


def is_daily(view: Any) -> bool:
    """Return whether a Feast view is of daily aggregates."""
    return bool(view.tags.get(GRAIN_TAG) == daily[GRAIN_TAG])


def computed_as_of(view: Any) -> bool:
    """Return whether the values of a Feast view are computed from a state, as of each read."""
    return bool(getattr(view, "aggregations", None)) and not is_daily(view)


def _listed(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def definition_of(view: StreamFeatureView) -> AggregateView:
    """Return the definition of a view that ``declared_aggregates`` does not refuse."""
    aggregates = []
    for aggregation in view.aggregations:
        window = aggregation.time_window
        name = aggregation.resolved_name(window)
        function, _, limit = aggregation.function.partition(":")
        of_types, where = (
            view.tags.get(f"{tag}.{name}", view.tags.get(tag, ""))
            for tag in (EVENT_TYPES_TAG, WHERE_TAG)
        )
        aggregates.append(
            Aggregate(
                name=name,
                function=cast(Name, function),
                column=aggregation.column or c.EVENT_ID,
                window=None if window is None else round(window.total_seconds() * MICROS),
                types=tuple(_listed(of_types)),
                where=where,
                limit=int(limit or 0),
                daily=is_daily(view),
            )
        )
    key = ENTITIES[view.entities[0]].join_key
    ttl = view.ttl.days if view.ttl else None
    return AggregateView(view.name, key, tuple(aggregates), ttl)


def feature_types(view: AggregateView) -> dict[str, FeastType]:
    """Return the columns of a view of aggregates and their types."""
    types = {aggregate.name: _TYPES[aggregate.kind] for aggregate in view.aggregates}
    return types if view.daily else types | {view.state_column: String}
