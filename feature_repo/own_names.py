"""Names that Funnel's own columns and features have, so that no attribute of a data set may."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from feature_repo import columns as c
from feature_repo.request_time import OUTPUTS

EVENT_NAMES = {c.EVENT_ID, c.TYPE, c.TIMESTAMP, c.VALUE, c.WEIGHT, c.POSITIVE, c.MONTH}
"""Columns of ingested events, besides those of users and items."""

_FIXED = {
    *(c.USER, c.ITEM, c.EVENT_TIMESTAMP, c.REQUEST_TIME, c.AVAILABLE_FROM, c.AVAILABLE_UNTIL),
    *(c.HISTORY_ITEMS, c.HISTORY_TIMES, c.CATEGORIES, c.CATEGORY_SHARES),
    *(c.FIRST_EVENT_AT, c.LAST_EVENT_AT, *OUTPUTS),
}
_PAIRS = {*c.PAIR_FEATURES, *c.ITEM_AGES, c.HISTORY_LENGTH_FEATURE, c.HISTORY_GAP_FEATURE}
FIXED = _FIXED | _PAIRS
"""Names of columns and features that every data set has, besides those of aggregates."""

_WINDOW = r"(\d+[mhd]|all)"
_AGGREGATE = rf"(events|value_mean)_{_WINDOW}|trend|active_days"


def is_taken(name: str, event_types: Sequence[str]) -> bool:
    """Return whether a data set with these event types has a column or feature of this name."""
    return name in _FIXED or _is_aggregate(name, event_types)


def is_ranker_column(name: str, event_types: Sequence[str]) -> bool:
    """Return whether a ranker's rows may have such a column that is of no attribute."""
    of_item = name.removeprefix("item_")
    return name in _PAIRS or name in OUTPUTS or _is_aggregate(of_item, event_types)


def _is_aggregate(name: str, event_types: Sequence[str]) -> bool:
    kinds = "|".join(map(re.escape, event_types)) or "(?!)"
    typed = rf"({kinds})_(count|items|users)_{_WINDOW}|seen_({kinds})"
    return re.fullmatch(f"{_AGGREGATE}|{typed}", name) is not None


def ranker_clashes(
    event_types: Sequence[str],
    user_attributes: Mapping[str, str],
    item_attributes: Mapping[str, str],
) -> list[str]:
    """Return the attributes whose column in a ranker's row has the name of another column.

    Attributes are given with their kinds.
    """
    owners: dict[str, str] = {}
    clashes: list[str] = []
    for side, attributes in (("user", user_attributes), ("item", item_attributes)):
        for name, kind in attributes.items():
            if kind == "text":
                continue
            column = name if (side, kind) == ("user", "numeric") else f"{side}_{name}"
            if is_ranker_column(column, event_types):
                clashes.append(name)
            if column in owners:
                clashes += [name, owners[column]]
            owners[column] = name
    return clashes


def as_name(column: str) -> str:
    """Return a feature name like a column's: what precedes ':' or '.', in small letters."""
    words = re.findall(r"[a-z0-9]+", re.split(r"[:.]", column)[0].lower())
    name = "_".join(words).lstrip("0123456789_") or "column"
    own = is_taken(name, ()) or name in _PAIRS
    return f"{name}_given" if own else name
