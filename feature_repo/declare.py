"""What a ``features.py`` imports: the entities, the event log, and the built-in views.

from feature_repo.declare import defaults, events, user
"""

from __future__ import annotations

from contextvars import ContextVar
from datetime import timedelta
from typing import Any, NamedTuple

from feast import Entity, FileSource, PushSource, ValueType
from feast.aggregation import Aggregation

from feature_repo import columns as c

user = Entity(name="user", join_keys=[c.USER], value_type=ValueType.STRING)
"""The user: aggregates of this entity are of each user's events."""

item = Entity(name="item", join_keys=[c.ITEM], value_type=ValueType.STRING)
"""The item: aggregates of this entity are of the events with each item."""

events = PushSource(
    name="funnel_events",
    batch_source=FileSource(
        name="funnel_event_log", path="ingest/events", timestamp_field=c.TIMESTAMP
    ),
)
"""The event log, as the source of aggregates. Its columns are those of ``EVENT_COLUMNS``."""

EVENT_COLUMNS = (c.EVENT_ID, c.USER, c.ITEM, c.TYPE, c.TIMESTAMP, c.VALUE, c.DAY)
"""Columns of an event, besides those of its context; ``event_day`` is that of its time (UTC)."""

EVENT_TYPES_TAG = "event_types"
"""Tag of a view whose aggregates are of some event types only: their names, with commas.

``event_types.<feature>`` is that of one feature.
"""

WHERE_TAG = "where"
"""Tag of a view with a condition on the columns of counted events; also ``where.<feature>``."""

GRAIN_TAG = "grain"

daily = {GRAIN_TAG: "day"}
"""Tags of a view whose aggregates are of whole days, as of each midnight (UTC)."""


def last_distinct(
    column: str, n: int, *, name: str, time_window: timedelta | None = None
) -> Aggregation:
    """Return the list of the newest distinct values of a column, newest last, at most ``n``."""
    return Aggregation(column, f"last_distinct:{n}", time_window=time_window, name=name)


def last_distinct_times(
    column: str, n: int, *, name: str, time_window: timedelta | None = None
) -> Aggregation:
    """Return the times of ``last_distinct``, epoch seconds."""
    return Aggregation(column, f"last_distinct_times:{n}", time_window=time_window, name=name)


def top(column: str, n: int, *, name: str, time_window: timedelta | None = None) -> Aggregation:
    """Return the list of the values of a column that weigh most, heaviest first, at most ``n``.

    An event has the weight of its type.
    """
    return Aggregation(column, f"top:{n}", time_window=time_window, name=name)


def top_shares(
    column: str, n: int, *, name: str, time_window: timedelta | None = None
) -> Aggregation:
    """Return the shares that the values of ``top`` have of the weight of all events."""
    return Aggregation(column, f"top_shares:{n}", time_window=time_window, name=name)


class BuiltInViews(NamedTuple):
    """The built-in views of a data set.

    Attributes:
        by_service: those that each model reads.
        by_name: all of them.

    """

    by_service: dict[str, list[Any]]
    by_name: dict[str, Any]


built_in_views: ContextVar[BuiltInViews] = ContextVar("built_in_views")
"""The built-in views while a ``features.py`` is read."""


class Defaults:
    """The built-in views: those that each model reads unless a ``features.py`` says otherwise."""

    @property
    def ranking(self) -> list[Any]:
        """The views of the ranking models."""
        return list(self._views.by_service["ranking"])

    @property
    def user_tower(self) -> list[Any]:
        """The views of the user tower."""
        return list(self._views.by_service["user_tower"])

    @property
    def item_tower(self) -> list[Any]:
        """The views of the item tower."""
        return list(self._views.by_service["item_tower"])

    def __getitem__(self, name: str) -> Any:
        """Return a built-in view, such as ``defaults["item_profile"]``.

        Raises:
            LookupError: the data set has no such view.

        """
        views = self._views.by_name
        if name not in views:
            raise LookupError(f"there is no built-in view '{name}', only {sorted(views)}")
        return views[name]

    @property
    def _views(self) -> BuiltInViews:
        try:
            return built_in_views.get()
        except LookupError:
            raise RuntimeError(
                "feature_repo.declare.defaults has its views only while Funnel reads a "
                "features.py: run 'feast apply' or a funnel command"
            ) from None


defaults = Defaults()
