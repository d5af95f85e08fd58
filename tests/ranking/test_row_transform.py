import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ranking.transform import RowTransform

ROWS = hnp.arrays(
    np.float32, st.tuples(st.integers(1, 30), st.just(3)), elements=st.floats(width=32)
)


@settings(max_examples=150, deadline=None)
@given(fit=ROWS, rows=ROWS)
def test_anything_in_finite_out_and_json_keeps_every_bit(fit: np.ndarray, rows: np.ndarray) -> None:
    transform = RowTransform.fit(fit)
    again = RowTransform.from_dict(json.loads(json.dumps(transform.to_dict(), allow_nan=False)))
    assert again == transform
    out = transform(rows)
    assert out.dtype == np.float32 and np.isfinite(out).all() and (np.abs(out) <= 6).all()
    assert np.array_equal(again(rows), out)
    codes = transform.buckets(rows)
    assert (codes >= 0).all() and (codes < np.array(transform.bucket_counts)).all()
    assert ((codes == 0) == ~np.isfinite(rows)).all()
    assert np.array_equal(again.buckets(rows), codes)


def test_hand_worked_column() -> None:
    rows = np.array([[1.0], [3.0], [np.nan], [5.0]], dtype=np.float32)
    transform = RowTransform.fit(rows)
    assert transform.median == (3.0,) and transform.mean == (3.0,)
    assert transform.scale[0] == pytest.approx(np.sqrt(2.0))
    expected = np.array([[-np.sqrt(2), 0], [0, 0], [0, 1], [np.sqrt(2), 0]])
    assert transform(rows) == pytest.approx(expected)
    assert transform.sources.tolist() == [0, 0]


def test_learns_from_the_rows_of_fit_only() -> None:
    random = np.random.default_rng(0)
    train, other = (
        random.normal(size=(500, 2)).astype(np.float32),
        np.full((500, 2), 99.0, dtype=np.float32),
    )
    transform = RowTransform.fit(train)
    before = transform.to_dict()
    assert transform(train).mean(axis=0) == pytest.approx([0, 0], abs=1e-6)
    assert (transform(other) == 6.0).all()  # held-out rows are clipped, not learnt from
    assert transform.to_dict() == before


def test_logarithm_only_for_skewed_columns() -> None:
    random = np.random.default_rng(0)
    rows = np.stack(
        [random.normal(size=2000), np.exp(2 * random.normal(size=2000))], axis=1
    ).astype(np.float32)
    transform = RowTransform.fit(rows)
    assert transform.log == (False, True)
    both = np.array([[0.0, -5.0], [0.0, 5.0]], dtype=np.float32)
    low, high = transform(both)[:, 1] * transform.scale[1] + transform.mean[1]
    assert low == pytest.approx(-high, abs=1e-5)


def test_indicator_only_where_training_rows_were_missing() -> None:
    rows = np.array([[1, 1], [2, np.inf], [3, 3]], dtype=np.float32)
    transform = RowTransform.fit(rows)
    assert transform.indicators == (1,)
    assert transform(np.full((1, 2), np.nan, dtype=np.float32))[0, 2] == 1.0


def test_constant_and_empty_columns_are_harmless() -> None:
    rows = np.array([[0.1, np.nan]] * 50, dtype=np.float32)
    transform = RowTransform.fit(rows)
    assert transform.scale == (1.0, 1.0)
    assert transform(rows)[0] == pytest.approx([0.0, 0.0, 1.0])
    with pytest.raises(ValueError, match="no rows"):
        RowTransform.fit(rows[:0])


def test_buckets_hold_equal_shares_and_keep_zero_apart() -> None:
    even = np.arange(1600, dtype=np.float32)[:, None]
    counts = np.bincount(RowTransform.fit(even).buckets(even)[:, 0])
    assert counts[0] == 0 and len(counts) == 17 and counts[1:].min() >= 99
    mostly_zero = np.r_[np.zeros(990), np.ones(10)].astype(np.float32)[:, None]
    codes = RowTransform.fit(mostly_zero).buckets(mostly_zero)
    assert codes[0, 0] != codes[-1, 0]
