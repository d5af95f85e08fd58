"""Column names of all tables that stages exchange; they are spelt nowhere else."""

from __future__ import annotations

USER = "user_id"
ITEM = "item_id"
EVENT_ID = "event_id"
TIMESTAMP = "timestamp"
TYPE = "type"
VALUE = "value"
WEIGHT = "weight"
POSITIVE = "positive"
MONTH = "month"

DAY = "event_day"
"""The day (UTC) of an event, since the epoch: a column that aggregates can read."""

ITEM_CATEGORIES = "item_category"
"""The categories of an event's item: a column that aggregates can read."""

EVENT_TIMESTAMP = "event_timestamp"
"""Feast's name for the time from which a feature row is known."""

REQUEST_TIME = "request_time"
"""Epoch seconds of a request: the input of the on-demand view."""

AVAILABLE_FROM = "available_from"
AVAILABLE_UNTIL = "available_until"

VALID_FROM = "valid_from"
"""From when a row of a user or item holds, where their table keeps a history."""

HISTORY_ITEMS = "history_item_ids"
HISTORY_TIMES = "history_timestamps"
HISTORY_LENGTH = 50
SEEN_LENGTH = 10_000
"""Items that are kept as seen, by user and event type; the newest."""

CATEGORIES = "category_names"
CATEGORY_SHARES = "category_shares"

FIRST_EVENT_AT = "first_event_at"
LAST_EVENT_AT = "last_event_at"
TREND = "trend"

PAIR_FEATURES = (
    "tower_score",  # cosine of user and item vectors
    "tower_rank",  # log of the item's rank among the tower's candidates
    "similar_score",  # co-visitation with recent items, newest weigh most
    "similar_last",  # co-visitation with the newest item
    "cosine_last",  # cosine of item vectors: the newest item ...
    "cosine_recent",  # ... the mean of the five newest ...
    "cosine_best",  # ... and the nearest of the ten newest
    "category_share",  # share of the user's positive events in the item's categories
)
"""A ranker's numeric features of a user-item pair."""


def similarities(vector: str) -> tuple[str, str, str]:
    """Return the features of a pair that a vector of items gives: cosines with recent items."""
    return f"{vector}_last", f"{vector}_recent", f"{vector}_best"


ITEM_AGES = ("item_age_days", "item_recency_days")
"""Days since an item's first and last event, at the moment of the request."""

HISTORY_LENGTH_FEATURE = "history_length"
HISTORY_GAP_FEATURE = "history_gap_days"
"""A ranker's features of a user's history: its number of items, and days between the newest two."""

EVENTS_7D = "events_7d"
EVENTS_30D = "events_30d"
"""An item's events in a week and a month, which candidate sources go by."""


def seen(event_type: str) -> str:
    """Return the name of a user's list of items with an event type, e.g. ``seen_view``."""
    return f"seen_{event_type}"
