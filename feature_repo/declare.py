"""What a ``features.py`` imports: the entities, the event log, and the built-in views.

from feature_repo.declare import defaults, events, user
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any, NamedTuple

from feast import Entity, FileSource, PushSource, ValueType

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

EVENT_COLUMNS = (c.EVENT_ID, c.USER, c.ITEM, c.TYPE, c.TIMESTAMP, c.VALUE)
"""Columns of an event; functions other than ``count`` take ``value``."""

EVENT_TYPES_TAG = "event_types"
"""Tag of a view whose aggregates are of some event types only: their names, with commas."""


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
