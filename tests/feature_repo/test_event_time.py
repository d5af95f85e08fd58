"""A time is read alike everywhere, or refused with the forms that are read."""

from datetime import UTC, datetime, timedelta, timezone

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo.event_time import FORMS, UnreadableTime, doubt_of, read_end, read_time
from pipelines.ingest.times import ALWAYS, NO_END, read_begins, read_ends, read_times

MOMENT = 1_791_194_400  # 2026-10-05T10:00:00Z


@pytest.mark.parametrize(
    "value",
    [
        MOMENT,
        float(MOMENT),
        str(MOMENT),
        f" {MOMENT}.0 ",
        MOMENT * 1_000,
        MOMENT * 1_000_000,
        "1.7911944e9",
        "2026-10-05T10:00:00Z",
        "2026-10-05T10:00:00",
        "2026-10-05 10:00",
        "2026-10-05T12:00:00+02:00",
        "2026-10-05T15:30:00+0530",
        "2026-10-05T06:00:00-04",
        "20261005T100000Z",
        "2026/10/05 10:00:00",
        "2026-10-05 10:00:00 UTC",
        "2026-10-05 10:00:00.000 UTC",
        "2026-10-05 10:00:00 GMT",
        "2026-10-05 10:00:00 +0000 UTC",
        "2026-10-05 12:00:00 +0200 CEST",
        "2026-10-05T12:00:00+02:00[Europe/Berlin]",
        "2026-10-05T10:00:00Z[UTC]",
    ],
)
def test_one_moment_in_every_form(value):
    assert read_time(value) == MOMENT


@pytest.mark.parametrize(
    "value",
    ["now", "today", "yesterday", "20:15", "28/11/2026", "11/28/2026 10:00", "28.11.2026", ""]
    + ["2026-W48-6", "2026-13-01", "2026-02-30", "2026-10-05 10:00:00 PST", "9999-12-31"]
    + ["2026-10-05T24:00:00", "2026-10-05T10:00:00+99:00", "inf", "nan", "1_0", "٢٠٢٦-10-05"]
    + [True, None, [], {}, 0, -1, 12.0, 20261005, "20261005", 46300.4, 202610051015, 20261005101500]
    + [1e300, 10**400, float("nan"), float("inf")],
)
def test_what_is_no_time_is_refused_with_the_forms(value):
    with pytest.raises(UnreadableTime) as refused:
        read_time(value)
    assert FORMS in str(refused.value)
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize(
    ("number", "meant"),
    [
        (20261005, "2026-10-05"),
        (202610051015, "2026-10-05"),
        (20261005101500, "2026-10-05"),
        (46300.4, "2026-10-05"),
        (12, "1970-01-01T00:00:12Z"),
        (-5, "before 1970"),
        (1e17, "2255"),
    ],
)
def test_a_number_that_is_no_epoch_says_what_it_would_mean(number, meant):
    assert meant in doubt_of(number)


@pytest.mark.parametrize(
    "text",
    ["9999-12-31", "9999-12-31 23:59:59", "9999-12-31T23:59:59.999Z", "2999-01-01", "99991231"]
    + ["0000-00-00", "0000-00-00 00:00:00", "0001-01-01T00:00:00Z", "1900-01-01", "0", "", " "]
    + ["1970-01-01 00:00:00", "2200-01-01"],
)
def test_dates_that_mean_no_end(text):
    assert read_end(text) is None
    if text.strip():
        assert read_ends(column(text)).moments.tolist() == [NO_END]


def test_real_limits_stay():
    assert read_end("2027-01-31") == datetime(2027, 1, 31, tzinfo=UTC).timestamp()
    day = pd.Timestamp("2027-01-31", tz="UTC")
    assert read_ends(column("2027-01-31", None)).moments.tolist() == [day, pd.NaT]
    begins = read_begins(column("2027-01-31", "0000-00-00", "9999-12-31"))
    assert begins.moments.tolist() == [day, ALWAYS, NO_END]
    assert read_ends(column("soon", "46300")).moments.isna().all()
    assert read_ends(column("soon", "46300")).doubtful.tolist() == [False, True]


def column(*texts):
    return pd.Series(texts, dtype="string[pyarrow]")


ZONES = st.integers(-14 * 4, 14 * 4).map(lambda n: timezone(timedelta(minutes=15 * n)))
MOMENTS = st.datetimes(datetime(1981, 1, 1), datetime(2200, 1, 1), timezones=ZONES)
FORMATS = {
    "iso": lambda t: t.isoformat(),
    "blank": lambda t: t.isoformat(sep=" "),
    "zulu": lambda t: t.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
    "word": lambda t: t.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f UTC"),
    "offset": lambda t: t.strftime("%Y-%m-%d %H:%M:%S.%f %z UTC"),
    "basic": lambda t: t.strftime("%Y%m%dT%H%M%S.%f%z"),
    "naive": lambda t: t.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f"),
    "seconds": lambda t: f"{t.timestamp():.6f}",
    "micros": lambda t: str((t - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)),
}


@settings(max_examples=60, deadline=None)
@given(moments=st.lists(st.tuples(MOMENTS, st.sampled_from(sorted(FORMATS))), max_size=12))
def test_a_column_of_any_mix_is_read_value_by_value(moments):
    texts = [FORMATS[form](moment) for moment, form in moments]
    read = read_times(column(*texts), "auto")
    expected = [moment for moment, _ in moments]
    for text, found, moment in zip(texts, read.moments, expected, strict=True):
        assert abs((found.to_pydatetime() - moment).total_seconds()) <= 2e-6, text
        assert abs(read_time(text) - moment.timestamp()) <= 2e-6, text


@settings(max_examples=150, deadline=None)
@given(text=st.text(st.sampled_from("0123456789-:. TZUC+/eE"), max_size=24))
def test_files_and_requests_read_any_text_alike(text):
    stripped = text.strip()
    number = pd.Series([stripped or None, "soon"], dtype="string[pyarrow]")
    read = read_times(number, "auto")
    try:
        seconds = read_time(text)
    except UnreadableTime:
        as_date = read.dates  # a column of nothing but 20261005 holds days
        before = read.moments[0] <= pd.Timestamp(0, tz="UTC")  # refused by the next check
        assert pd.isna(read.moments[0]) or as_date or before
    else:
        assert abs(read.moments[0].timestamp() - seconds) <= 2e-6


def test_a_column_of_days_as_numbers():
    days = ["20261005"] * 9
    read = read_times(column(*days, "20261331", None, "soon", "0"), "auto")
    assert read.dates
    assert read.moments.notna().tolist() == [True] * 9 + [False] * 4
    read = read_times(column("20261005", "20261014"), "auto")
    assert read.moments.tolist() == [
        pd.Timestamp("2026-10-05", tz="UTC"),
        pd.Timestamp("2026-10-14", tz="UTC"),
    ]
    mixed = read_times(column("20261005", str(MOMENT)), "auto")
    assert mixed.doubtful.tolist() == [True, False]
    minutes = read_times(column("202610051015", "202610051016"), "auto")
    assert minutes.moments[0] == pd.Timestamp("2026-10-05T10:15", tz="UTC")
