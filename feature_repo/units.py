"""Numbers as aggregates add them: integers of millionths, so that sums are exact."""

from __future__ import annotations

import math

MICROS = 1_000_000
"""Millionths in one, and microseconds in a second."""

DAY_MICROS = 86_400 * MICROS
"""Microseconds in a day."""


def units_of(value: float | None) -> int | None:
    """Return a value in millionths, halves away from zero as Spark rounds; None stays None."""
    if value is None:
        return None
    size = abs(value) * MICROS
    whole = math.floor(size)
    units = whole + (size - whole >= 0.5)
    return -units if value < 0 else units
