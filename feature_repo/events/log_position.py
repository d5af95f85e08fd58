"""Positions in the event log, ``milliseconds-number``: when an event was accepted, its order."""

from __future__ import annotations

from feature_repo.units import MICROS


def position_key(position: str | None) -> tuple[int, int]:
    """Return a log position in a form that sorts; None sorts first."""
    if not position:
        return 0, 0
    milliseconds, _, number = position.partition("-")
    return int(milliseconds), int(number or 0)


def arrival_micros(position: str) -> int:
    """Return the end of the millisecond in which an entry was accepted, in microseconds."""
    return position_key(position)[0] * 1_000 + 999


def event_micros(timestamp: float, position: str) -> int:
    """Return an event's time in microseconds, at most its arrival, which the log position gives.

    Senders' clocks may run ahead, but an event cannot arrive before it happens.
    """
    return min(round(timestamp * MICROS), arrival_micros(position))
