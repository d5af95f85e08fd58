"""Reads columns of times; each value as ``feature_repo.event_time`` reads it alone."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from feature_repo import event_time as et

_COMPACT = r"(?:19|20)\d{6}(?:\d{4}(?:\d{2})?)?"
_PLAIN_DATE = r"\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?"
_UNZONED = rf"{_PLAIN_DATE})?"
_ZONED = rf"{_PLAIN_DATE}(?:Z|[+-][01]\d:\d\d))"
_LEAST_DATES = 0.9
_UTC_MICROS = "datetime64[us, UTC]"

NO_END = pd.Timestamp(et.NO_END_S, unit="s", tz="UTC").as_unit("us")
"""Stands for an end that never comes."""

ALWAYS = pd.Timestamp(0, unit="s", tz="UTC").as_unit("us")
"""Stands for a beginning before everything."""


class Times(NamedTuple):
    """A column of times.

    ``moments`` is NaT where a value is missing or cannot be read; ``doubtful`` says which values
    are numbers that are no epoch time of a log; ``dates`` whether all numbers are days.
    """

    moments: pd.Series
    doubtful: pd.Series
    dates: bool = False


def parse_times(raw: pd.Series, unit: str) -> pd.Series:
    """Parse epoch numbers or ISO 8601 text to UTC; what cannot be read becomes NaT."""
    return read_times(raw, unit).moments


def read_times(raw: pd.Series, unit: str) -> Times:
    """Read a column of texts value by value.

    With ``auto`` each number is seconds, milliseconds or microseconds by its size and every other
    text ISO 8601; a column whose numbers are all dates such as 20261005 holds dates. The other
    units take numbers of that unit, or ISO 8601, only.
    """
    if unit == "iso":
        return Times(_iso_times(raw), pd.Series(False, index=raw.index))
    number = pd.to_numeric(
        raw.where(raw.str.fullmatch(et.NUMBER).fillna(False).astype("bool")), errors="coerce"
    ).astype("float64")
    if unit != "auto":
        of_unit = {"s": 1e6, "ms": 1e3, "us": 1.0}[unit]
        return Times(_epoch_times(number, of_unit), pd.Series(False, index=raw.index))

    texts = _iso_times(raw.where(number.isna()))
    if _all_dates(raw, number):
        return Times(texts.fillna(_compact_times(raw)), pd.Series(False, index=raw.index), True)

    # The unit of each number by its size, then what would be before 1980.
    size = number.abs()
    scale = np.select([size < et.MILLISECONDS_FROM, size < et.MICROSECONDS_FROM], [1e6, 1e3], 1.0)
    micros = number * scale
    doubtful = (micros > 0) & (micros < et.EARLIEST_S * et.MICROS)
    epochs = _epoch_times(number.where(~doubtful), scale)
    return Times(texts.fillna(epochs), doubtful)


def read_begins(raw: pd.Series) -> Times:
    """Read when items begin to be available; a date that stands for none is ``ALWAYS``.

    A date far ahead, such as 9999-12-31, is ``NO_END``: not before then.
    """
    return _read_limits(raw, far=NO_END, none=ALWAYS)


def read_ends(raw: pd.Series) -> Times:
    """Read when items cease to be available; ``NO_END`` where they do not, or nobody knows."""
    return _read_limits(raw, far=NO_END, none=NO_END)


def _read_limits(raw: pd.Series, *, far: pd.Timestamp, none: pd.Timestamp) -> Times:
    special = raw.isin([text for text in raw.dropna().unique() if et.means_no_end(text)])
    times = read_times(raw.where(~special), "auto")
    is_far = special & raw.str.match(r"[2-9]").fillna(False).astype("bool")
    moments = times.moments.mask(is_far, far).mask(special & ~is_far, none)
    beyond = (moments >= NO_END).fillna(False)
    return Times(moments.mask(beyond, far).astype(_UTC_MICROS), times.doubtful)


def _epoch_times(number: pd.Series, scale: object) -> pd.Series:
    """Return numbers times ``scale`` (microseconds) as times; NaT where out of range."""
    with np.errstate(over="ignore"):
        micros = number.to_numpy() * scale
    readable = np.isfinite(micros) & (np.abs(micros) < et.END_MICROS)
    whole = np.where(readable, micros, 0).round().astype("int64")
    times = pd.Series(whole.view("datetime64[us]"), index=number.index).dt.tz_localize("UTC")
    return times.where(pd.Series(readable, index=number.index))


def _all_dates(raw: pd.Series, number: pd.Series) -> bool:
    """Return whether the positive numbers of a column all look like 20261005, or 202610051015."""
    positive = raw[number > 0]
    if not len(positive) or not positive.str.fullmatch(_COMPACT).all():
        return False
    dates = pd.to_datetime(positive.str.slice(0, 8), format="%Y%m%d", errors="coerce")
    return bool(dates.notna().mean() >= _LEAST_DATES)


def _compact_times(raw: pd.Series) -> pd.Series:
    """Return the times of digits like 20261005, 202610051015 and 20261005101500."""
    digits = raw.where(raw.str.fullmatch(_COMPACT).fillna(False).astype("bool"))
    padded = digits.str.pad(14, side="right", fillchar="0").astype("object")
    times = pd.to_datetime(padded, format="%Y%m%d%H%M%S", errors="coerce", utc=True)
    return times.astype(_UTC_MICROS)


def _iso_times(raw: pd.Series) -> pd.Series:
    """Return ISO 8601 texts as times: the usual forms at once, others one by one."""

    def selected(pattern: str) -> pd.Series:
        return raw.str.fullmatch(pattern).fillna(False).astype("bool")

    def parse(rows: pd.Series) -> pd.Series:
        texts = raw.where(rows).astype("object")
        parsed = pd.to_datetime(texts, errors="coerce", utc=True, format="ISO8601")
        return parsed.astype(_UTC_MICROS)

    zoned, unzoned = selected(_ZONED), selected(_UNZONED)
    # Separately, because pandas gives a time without zone the offset of the one before it.
    times = parse(zoned).fillna(parse(unzoned))
    others = raw[raw.notna() & ~zoned & ~unzoned]
    if len(others):
        micros = {text: et.iso_micros(text) for text in others.unique()}
        read = pd.Series(others.map(micros), dtype="float64")
        times = times.fillna(_epoch_times(read.reindex(raw.index), 1.0))
    inside = (times >= _bound(et.START_MICROS)) & (times < _bound(et.END_MICROS))
    return times.where(inside)


def _bound(micros: int) -> pd.Timestamp:
    return pd.Timestamp(micros, unit="us", tz="UTC")
