"""Names that Funnel's own columns and features have, so that no attribute of a data set may."""

from __future__ import annotations

import re
from collections.abc import Mapping

from feature_repo import columns as c
from feature_repo.facts import PANE_S
from feature_repo.request_time import OUTPUTS

EVENT_NAMES = {c.EVENT_ID, c.TYPE, c.TIMESTAMP, c.VALUE, c.WEIGHT, c.POSITIVE, c.MONTH}
"""Columns of ingested events, besides those of users and items."""


def taken(event_types: list[str]) -> set[str]:
    """Return the names of columns and features that every data set with these event types has."""
    fixed = {c.USER, c.ITEM, c.EVENT_TIMESTAMP, c.REQUEST_TIME, c.AVAILABLE_FROM, c.AVAILABLE_UNTIL}
    fixed |= {c.HISTORY_ITEMS, c.HISTORY_TIMES, c.CATEGORIES, c.CATEGORY_SHARES}
    fixed |= {c.RECENT_ITEMS, c.RECENT_TYPES, c.RECENT_TIMES, c.RECENT_CATEGORIES, c.POSITION}
    fixed |= {c.SESSION_EVENTS, c.SESSION_SECONDS, c.SESSION_CATEGORIES}
    fixed |= {name(window) for window in PANE_S for name in (c.panes, c.trend)}
    fixed |= {c.count(kind, window) for kind in event_types for window in PANE_S}
    fixed |= {c.FIRST_EVENT_AT, c.LAST_EVENT_AT, c.ACTIVE_DAYS, c.TREND, *OUTPUTS}
    counts = [*c.user_counts(event_types, True), *c.item_counts(event_types, True)]
    return fixed | {*counts, *(c.seen(name) for name in event_types)}


def ranker_columns(event_types: list[str], *, has_value: bool) -> list[str]:
    """Return the columns of a ranker's rows that are of no attribute."""
    own = [*c.PAIR_FEATURES, *c.ITEM_AGES, c.HISTORY_LENGTH_FEATURE, c.HISTORY_GAP_FEATURE]
    own += [*c.user_counts(event_types, has_value), c.ACTIVE_DAYS, *OUTPUTS]
    return own + [f"item_{name}" for name in (*c.item_counts(event_types, has_value), c.TREND)]


def ranker_clashes(
    event_types: list[str],
    user_attributes: Mapping[str, str],
    item_attributes: Mapping[str, str],
    *,
    has_value: bool,
) -> list[str]:
    """Return the attributes whose column in a ranker's row has the name of another column.

    Attributes are given with their kinds; ``has_value``: events carry a number.
    """
    own = ranker_columns(event_types, has_value=has_value)
    owners: dict[str, list[str]] = {name: [] for name in own}
    clashes: list[str] = []
    for side, attributes in (("user", user_attributes), ("item", item_attributes)):
        for name, kind in attributes.items():
            if kind == "text":
                continue
            column = name if (side, kind) == ("user", "numeric") else f"{side}_{name}"
            if column in owners:
                clashes += [name, *owners[column]]
            owners[column] = [name]
    return clashes


def as_name(column: str) -> str:
    """Return a feature name like a column's: what precedes ':' or '.', in small letters."""
    words = re.findall(r"[a-z0-9]+", re.split(r"[:.]", column)[0].lower())
    name = "_".join(words).lstrip("0123456789_") or "column"
    own = taken([]) | {*c.PAIR_FEATURES, *c.ITEM_AGES}
    return f"{name}_given" if name in own else name
