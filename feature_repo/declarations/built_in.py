"""The built-in aggregates of events, declared as a user declares theirs.

What reads a feature by its role, as candidate sources read an item's popularity, takes the name
from ``feature_repo/columns.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from types import MappingProxyType

from feast import Entity, StreamFeatureView
from feast.aggregation import Aggregation

from feature_repo import columns as c
from feature_repo.dataset import DatasetSpec
from feature_repo.declarations.checks import without_experimental_warnings
from feature_repo.declare import (
    EVENT_TYPES_TAG,
    daily,
    events,
    item,
    last_distinct,
    last_distinct_times,
    top,
    top_shares,
    user,
)

NEVER_STALE = timedelta(days=18_250)
"""TTL of attributes, which no passing of time makes wrong."""

SNAPSHOT_TTL = timedelta(days=90)
"""TTL of daily aggregates."""

AFFINITY_LENGTH = 20
"""Categories that a user's shares are kept of; the greatest."""

_WINDOWS = {
    "1d": timedelta(days=1),
    "7d": timedelta(days=7),
    "30d": timedelta(days=30),
    "all": None,
}


_RECENT = {
    "10m": timedelta(minutes=10),
    "1h": timedelta(hours=1),
    "24h": timedelta(hours=24),
}


def built_in_aggregates(spec: DatasetSpec) -> list[StreamFeatureView]:
    """Return the built-in aggregates that a data set has."""
    views = [_user_history(spec), _user_recent(spec)]
    views += [_user_activity(spec), _item_activity(spec), _user_seen(spec)]
    if spec.category:
        views.append(_user_affinity(spec))
    return views


_Typed = tuple[Aggregation, str]
"""An aggregate and the event types that it is of, with commas; "": all."""


def _user_history(spec: DatasetSpec) -> StreamFeatureView:
    positive = ",".join(spec.positive_types)
    return _view(
        "user_history",
        user,
        [
            (last_distinct(c.ITEM, c.HISTORY_LENGTH, name=c.HISTORY_ITEMS), positive),
            (last_distinct_times(c.ITEM, c.HISTORY_LENGTH, name=c.HISTORY_TIMES), positive),
        ],
    )


def _user_recent(spec: DatasetSpec) -> StreamFeatureView:
    counts = [
        (Aggregation(c.EVENT_ID, "count", time_window=window, name=f"{kind}_count_{name}"), kind)
        for name, window in _RECENT.items()
        for kind in spec.event_types
    ]
    return _view("user_recent", user, counts)


def _user_activity(spec: DatasetSpec) -> StreamFeatureView:
    active_days = Aggregation(c.DAY, "count_distinct", name="active_days")
    counts = [*_activity(spec, c.ITEM, "items"), (active_days, "")]
    return _view("user_activity", user, counts, ttl=SNAPSHOT_TTL, tags=daily)


def _item_activity(spec: DatasetSpec) -> StreamFeatureView:
    trend = Aggregation(c.EVENT_ID, "trend", time_window=_WINDOWS["30d"], name=c.TREND)
    counts = [*_activity(spec, c.USER, "users"), (trend, "")]
    return _view("item_activity", item, counts, ttl=SNAPSHOT_TTL, tags=daily)


def _activity(spec: DatasetSpec, other: str, others: str) -> Iterator[_Typed]:
    """Yield counts of events and of distinct others by window and type, means, first and last."""
    for name, window in _WINDOWS.items():
        yield Aggregation(c.EVENT_ID, "count", time_window=window, name=f"events_{name}"), ""
        for kind in spec.event_types:
            counted = Aggregation(
                c.EVENT_ID, "count", time_window=window, name=f"{kind}_count_{name}"
            )
            distinct = Aggregation(
                other, "count_distinct", time_window=window, name=f"{kind}_{others}_{name}"
            )
            yield from ((counted, kind), (distinct, kind))
        if spec.has_value:
            yield Aggregation(c.VALUE, "mean", time_window=window, name=f"value_mean_{name}"), ""
    yield Aggregation(c.TIMESTAMP, "min", name=c.FIRST_EVENT_AT), ""
    yield Aggregation(c.TIMESTAMP, "max", name=c.LAST_EVENT_AT), ""


def _user_seen(spec: DatasetSpec) -> StreamFeatureView:
    lists = [
        (last_distinct(c.ITEM, c.SEEN_LENGTH, name=c.seen(kind)), kind) for kind in spec.event_types
    ]
    return _view("user_seen", user, lists, tags=daily)


def _user_affinity(spec: DatasetSpec) -> StreamFeatureView:
    positive = ",".join(spec.positive_types)
    return _view(
        "user_affinity",
        user,
        [
            (top(c.ITEM_CATEGORIES, AFFINITY_LENGTH, name=c.CATEGORIES), positive),
            (top_shares(c.ITEM_CATEGORIES, AFFINITY_LENGTH, name=c.CATEGORY_SHARES), positive),
        ],
        ttl=SNAPSHOT_TTL,
        tags=daily,
    )


def _view(
    name: str,
    entity: Entity,
    typed: Iterable[_Typed],
    *,
    ttl: timedelta = timedelta(0),
    tags: Mapping[str, str] = MappingProxyType({}),
) -> StreamFeatureView:
    """Return a view of aggregates."""
    aggregates = list(typed)
    types = {f"{EVENT_TYPES_TAG}.{one.name}": kind for one, kind in aggregates if kind}
    with without_experimental_warnings():
        return StreamFeatureView(
            name=name,
            entities=[entity],
            ttl=ttl,
            source=events,
            timestamp_field=c.TIMESTAMP,
            tags={**tags, **types},
            aggregations=[one for one, _ in aggregates],
        )


def counts_of(spec: DatasetSpec) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the built-in aggregates that are columns of a ranker, of users and of items.

    The times of first and last events are none: a ranker reads ages.
    """
    moments = (c.FIRST_EVENT_AT, c.LAST_EVENT_AT)
    users, items = (
        tuple(name for one in view.aggregations if (name := one.name) not in moments)
        for view in (_user_activity(spec), _item_activity(spec))
    )
    return users, items
