"""Features that exist only at the moment of a request: one definition for scalars and arrays."""

from __future__ import annotations

from typing import Any

SECONDS_PER_DAY = 86_400.0

OUTPUTS = ("hour_of_day", "day_of_week", "user_recency_days", "user_tenure_days")


def request_time_features(
    request_time: Any, first_event_at: Any, last_event_at: Any
) -> dict[str, Any]:
    """Return hour (UTC, 0-23), weekday (0 = Monday) and days since a user's last and first event.

    Arguments are epoch seconds, scalars or NumPy arrays of equal shape; a missing moment (None or
    NaN) gives a missing age.
    """
    return {
        "hour_of_day": (request_time // 3600) % 24,
        "day_of_week": (request_time // 86_400 + 3) % 7,  # 1970-01-01 was a Thursday
        "user_recency_days": None
        if last_event_at is None
        else (request_time - last_event_at) / SECONDS_PER_DAY,
        "user_tenure_days": None
        if first_event_at is None
        else (request_time - first_event_at) / SECONDS_PER_DAY,
    }
