"""The one reading of a time, for files, ``POST /v1/events`` and ``PUT /v1/items``.

A number is epoch seconds, milliseconds or microseconds by its size. A text is ISO 8601, also as
warehouses write it (``2026-10-05 10:00:00 UTC``); without a zone it is UTC. Words, times without a
day, days without a clear order of day and month, and numbers that would be before 1980 (dates like
20261005 and day numbers of spreadsheets are) are not read.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime, timedelta

FORMS = (
    "epoch seconds, milliseconds or microseconds, and ISO 8601 such as 2026-10-05T10:00:00Z "
    "(with an offset or the word UTC instead of Z, or with neither: UTC)"
)
"""The forms that are read, for messages."""

MICROS = 1_000_000

EARLIEST_S = 315_532_800
"""1980-01-01: a smaller number is a date, a day number or a counter, but no epoch of a log."""

MILLISECONDS_FROM = 1e11
"""From here on a number is milliseconds: as seconds it would be after the year 5138."""

MICROSECONDS_FROM = 1e14
"""From here on a number is microseconds: as milliseconds it would be after the year 5138."""

END_MICROS = 9_000_000_000 * MICROS
"""Times from here on (the year 2255) are not read."""

START_MICROS = -9_223_372_036 * MICROS
"""Times before this one (1677) are not read."""

NO_END_S = 7_258_118_400
"""2200-01-01: an end from here on, such as 9999-12-31, means no end."""

NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
"""What is read as a number, a regular expression."""

_DATE = (
    r"(?P<year>\d{4})(?:(?P<sep>[-/.])(?P<month>\d{1,2})(?:(?P=sep)(?P<day>\d{1,2}))?"
    r"|(?P<month_>\d\d)(?P<day_>\d\d))"
)
_CLOCK = (
    r"(?P<hour>\d{1,2})(?::(?P<minute>\d\d)(?::(?P<second>\d\d)(?:[.,](?P<part>\d+))?)?"
    r"|(?P<minute_>\d\d)(?:(?P<second_>\d\d)(?:[.,](?P<part_>\d+))?)?)?"
)
# Go and Java write the zone's name behind the offset; the offset is what counts.
_ZONE_NAME = r"(?:\s?(?:[A-Z]{1,5}|\[[^\]]{1,40}\]))?"
_ZONE = (
    rf"(?:[Zz](?:\[[^\]]{{1,40}}\])?|\s*(?:UTC|GMT)"
    rf"|\s?(?P<sign>[+-])(?P<hours>\d\d):?(?P<minutes>\d\d)?{_ZONE_NAME})"
)
_NUMBER = re.compile(NUMBER, re.ASCII)
_TEXT = re.compile(rf"{_DATE}(?:(?:[Tt]|\s+){_CLOCK}{_ZONE}?)?", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DAY_ZERO = datetime(1899, 12, 30, tzinfo=UTC)
_DAY_NUMBERS = 20_000, 80_000

# What databases write for "no date": MySQL, .NET and Go, SQL Server, spreadsheets, and epoch zero.
_NO_DATE = re.compile(
    r"(?:0{4}-0?0-0?0|0?0?01-0?1-0?1|0001-01-01|1753-01-01|1899-12-3[01]|1900-01-01|1970-01-01)"
    r"(?:[T ][0:.]*(?:Z|\s?UTC|[+-]00:?(?:00)?)?)?|0+(?:\.0*)?"
)
_FAR_END = re.compile(r"(?:[3-9]\d{3}|2[2-9]\d{2})[-/.]?\d.*")


class UnreadableTime(ValueError):
    """A time cannot be read; the message says which value, why, and what is read."""


def read_time(value: object) -> float:
    """Return a time as epoch seconds.

    Raises:
        UnreadableTime: it has none of the ``FORMS``, or is none that a log can have.

    """
    if isinstance(value, str):
        text = value.strip()
        if not _NUMBER.fullmatch(text):
            return _iso_micros(text) / MICROS
        value = float(text)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UnreadableTime(f"{_shown(value)} is not a time; read are {FORMS}")
    value = float(value) if abs(value) < 1e300 else math.inf
    if doubt := doubt_of(value):
        raise UnreadableTime(f"{doubt}; read are {FORMS}")
    return value * seconds_per(value)


def read_end(value: object) -> float | None:
    """Return when something ends, epoch seconds; None: it does not end, or that is not known.

    Raises:
        UnreadableTime: see ``read_time``.

    """
    if value is None or (isinstance(value, str) and not value.strip()) or means_no_end(str(value)):
        return None
    seconds = read_time(value)
    return None if seconds >= NO_END_S else seconds


def means_no_end(text: str) -> bool:
    """Return whether a text is a date that stands for no end, or for no date at all."""
    text = text.strip()
    return bool(_NO_DATE.fullmatch(text) or (_FAR_END.fullmatch(text) and _TEXT.fullmatch(text)))


def seconds_per(number: float) -> float:
    """Return the seconds of a number's unit, by its size."""
    if abs(number) < MILLISECONDS_FROM:
        return 1.0
    return 1e-3 if abs(number) < MICROSECONDS_FROM else 1e-6


def doubt_of(number: float) -> str:
    """Return why a number is no epoch time of a log, with what it may be meant as; "" if it is."""
    if not math.isfinite(number):
        return f"{number:g} is not a finite number"
    seconds = number * seconds_per(number)
    if seconds >= EARLIEST_S and seconds * MICROS < END_MICROS:
        return ""
    if seconds * MICROS >= END_MICROS:
        when = "after the year 2255"
    elif seconds <= 0:
        when = "before 1970-01-01T00:00:01Z"
    else:
        when = (_EPOCH + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")
    return f"{_plain(number)} would be {when} as epoch {unit_name(number)}{_meant(number)}"


def _meant(number: float) -> str:
    """Return what a number that is no epoch time may be meant as, and how to write that."""
    if date := _compact_date(number):
        return f"; if the day {date} is meant, write it so"
    if _DAY_NUMBERS[0] <= number < _DAY_NUMBERS[1]:
        date = (_DAY_ZERO + timedelta(days=number)).date().isoformat()
        return f"; if it is a spreadsheet's day number, write {date}"
    return ""


def unit_name(number: float) -> str:
    """Return the name of a number's unit, by its size."""
    names = {1.0: "seconds", 1e-3: "milliseconds", 1e-6: "microseconds"}
    return names[seconds_per(number)]


def _compact_date(number: float) -> str:
    """Return the day that digits like 20261005 or 202610051015 write, "" if they write none."""
    text = _plain(number)
    try:
        if len(text) not in (8, 12, 14) or not "19" <= text[:2] <= "20":
            return ""
        return datetime.strptime(text[:8], "%Y%m%d").date().isoformat()
    except ValueError:
        return ""


def iso_micros(text: str) -> int | None:
    """Return a text in ISO 8601 as microseconds since 1970, None if it is none."""
    try:
        return _iso_micros(text.strip())
    except UnreadableTime:
        return None


def _iso_micros(text: str) -> int:
    match = _TEXT.fullmatch(text)
    if match is None:
        raise UnreadableTime(f"{_shown(text)} is not a time; read are {FORMS}")
    part = match.groupdict()
    try:
        moment = datetime(
            int(part["year"]),
            int(part["month"] or part["month_"]),
            int(part["day"] or part["day_"] or 1),
            int(part["hour"] or 0),
            int(part["minute"] or part["minute_"] or 0),
            int(part["second"] or part["second_"] or 0),
            int((part["part"] or part["part_"] or "0")[:6].ljust(6, "0")),
            tzinfo=UTC,
        )
    except ValueError as error:
        raise UnreadableTime(f"{_shown(text)} is not a time: {error}; read are {FORMS}") from None
    offset = int(part["hours"] or 0) * 60 + int(part["minutes"] or 0)
    if offset >= 24 * 60:
        raise UnreadableTime(f"{_shown(text)} has an offset of more than a day; read are {FORMS}")
    micros = (moment - _EPOCH) // timedelta(microseconds=1)
    micros -= (-offset if part["sign"] == "-" else offset) * 60 * MICROS
    if not START_MICROS <= micros < END_MICROS:
        raise UnreadableTime(f"{_shown(text)} is before 1677 or after 2255; read are {FORMS}")
    return micros


def _plain(number: float) -> str:
    return str(int(number)) if number == int(number) and abs(number) < 1e18 else f"{number:g}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
