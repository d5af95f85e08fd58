"""Features of the moment are the same one by one and all at once."""

import datetime as dt

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from feature_repo.request_time import OUTPUTS, request_time_features

MOMENTS = st.integers(1, 4_102_444_800)


def test_by_hand():
    monday = 1_714_953_600  # 2024-05-06T00:00:00Z
    found = request_time_features(
        monday + 3_600 * 23 + 1_800, monday - 86_400, monday + 3_600 * 11 + 1_800
    )
    assert found == {
        "hour_of_day": 23,
        "day_of_week": 0,
        "user_recency_days": 0.5,
        "user_tenure_days": 47.5 / 24,
    }
    assert tuple(found) == OUTPUTS


def test_a_new_user_has_no_ages():
    found = request_time_features(0, None, None)
    assert found == {
        "hour_of_day": 0,
        "day_of_week": 3,
        "user_recency_days": None,
        "user_tenure_days": None,
    }


@given(MOMENTS)
def test_the_calendar_agrees(moment):
    known = dt.datetime.fromtimestamp(moment, dt.UTC)
    found = request_time_features(moment, None, None)
    assert (found["hour_of_day"], found["day_of_week"]) == (known.hour, known.weekday())


@given(
    st.lists(st.tuples(MOMENTS, st.none() | MOMENTS, st.none() | MOMENTS), min_size=1, max_size=20)
)
def test_scalars_equal_arrays(requests):
    now, first, last = (
        np.array([np.nan if v is None else v for v in column])
        for column in zip(*requests, strict=True)
    )
    for times in (now, now.astype(np.int64)):
        arrays = request_time_features(times, first, last)
        for row, request in enumerate(requests):
            for name, value in request_time_features(*request).items():
                np.testing.assert_array_equal(arrays[name][row], np.nan if value is None else value)
