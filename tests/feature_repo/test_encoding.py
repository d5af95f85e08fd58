"""Codes and numbers of attributes: known by hand, unknown is 0, missing never spreads."""

import json

import numpy as np
import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from feature_repo.encoding import AttributeEncoder, Vocabulary

KINDS = {"colour": "categorical", "tags": "multi_categorical", "title": "text", "price": "numeric"}
COLUMNS = {
    "colour": ["red", "blue", "red", None],
    "tags": [["x", "y"], np.array(["y"], dtype=object), [], None],
    "title": ["The cat", "the dog, THE", "a cat", "Cat!"],
    "price": [0.0, np.e - 1, None, float("nan")],
}


def test_vocabulary_goes_by_frequency_then_alphabet():
    vocabulary = Vocabulary.fit(["b", "a", "c", "c", "rare"], least_count=1)
    assert vocabulary.values == ["c", "a", "b", "rare"]
    assert len(vocabulary) == 5
    assert Vocabulary.fit(["b", "a", "c", "c"], least_count=2).values == ["c"]
    codes = vocabulary.encode(["rare", "c", "none", None])
    assert codes.tolist() == [4, 1, 0, 0]
    assert codes.dtype == np.int32
    assert vocabulary.code(None) == vocabulary.code("") == 0


@given(st.lists(st.text(max_size=3), max_size=30))
def test_vocabulary_does_not_depend_on_the_order(values):
    forth, back = Vocabulary.fit(values), Vocabulary.fit(reversed(values))
    assert forth.values == back.values
    assert forth.encode(forth.values).tolist() == list(range(1, len(forth)))


def test_codes_by_hand():
    encoder = AttributeEncoder.fit(KINDS, COLUMNS)
    assert encoder.vocabularies["colour"].values == ["red", "blue"]
    assert encoder.vocabularies["tags"].values == ["y", "x"]
    assert encoder.vocabularies["title"].values == ["cat", "the"]  # words met three times
    assert encoder.table_size == 7
    encoded = encoder.encode(COLUMNS, 4)
    assert encoded.codes.shape == (4, 1 + 6 + 8)
    assert encoded.codes[:, 0].tolist() == [1, 2, 1, 0]
    assert encoded.codes[0, 1:4].tolist() == [4, 3, 0]
    assert encoded.codes[1, 7:10].tolist() == [6, 6, 0]
    assert encoded.first.tolist() == [[1, 2, 2], [2, 1, 2], [1, 0, 1], [0, 0, 1]]
    assert encoded.codes.max() < encoder.table_size
    np.testing.assert_allclose(encoded.numbers[:, 0], [0, np.e - 1, np.nan, np.nan], rtol=1e-6)
    np.testing.assert_allclose(encoder.standardise(encoded.numbers)[:, 0], [-1, 1, 0, 0], atol=1e-5)
    picked = encoded[[2, 0]]
    assert picked.first.tolist() == [[1, 0, 1], [1, 2, 2]]


def test_what_was_never_met_is_zero():
    encoder = AttributeEncoder.fit(KINDS, COLUMNS)
    strange = {
        "colour": ["green", pd.NA],
        "tags": [["z", None], float("nan")],
        "title": ["nothing", 3.0],
    }
    encoded = encoder.encode(strange, 2)
    assert not encoded.codes.any()
    assert not encoded.first.any()
    assert np.isnan(encoded.numbers).all()
    assert not encoder.encode({}, 3).codes.any()


def test_one_value_of_a_bag_is_a_bag_and_long_ones_are_cut():
    encoder = AttributeEncoder.fit(
        {"tags": "multi_categorical"}, {"tags": [[str(n)] for n in range(9)]}
    )
    assert encoder.encode({"tags": ["3"]}, 1).first.tolist() == [[4]]
    assert np.count_nonzero(encoder.encode({"tags": [[str(n) for n in range(9)]]}, 1).codes) == 6


def test_round_trip():
    encoder = AttributeEncoder.fit(KINDS, COLUMNS)
    restored = AttributeEncoder.from_dict(json.loads(json.dumps(encoder.to_dict())))
    assert restored.to_dict() == encoder.to_dict()
    before, after = encoder.encode(COLUMNS, 4), restored.encode(COLUMNS, 4)
    for name in ("codes", "first", "numbers"):
        np.testing.assert_array_equal(getattr(before, name), getattr(after, name))
    np.testing.assert_array_equal(
        encoder.standardise(before.numbers), restored.standardise(after.numbers)
    )


def test_without_attributes():
    encoder = AttributeEncoder.fit({}, {})
    encoded = encoder.encode({}, 2)
    assert encoded.codes.shape == encoded.first.shape == encoded.numbers.shape == (2, 0)
    assert encoder.standardise(encoded.numbers).shape == (2, 0)


NUMBERS = st.lists(st.one_of(st.none(), st.floats()), max_size=20)


@given(fitted=NUMBERS, met=NUMBERS)
def test_standardised_numbers_are_never_nan(fitted, met):
    encoder = AttributeEncoder.fit({"x": "numeric"}, {"x": fitted})
    numbers = encoder.encode({"x": met}, len(met)).numbers
    assert numbers.dtype == np.float32
    assert np.isnan(numbers[:, 0]).tolist() == [value is None or value != value for value in met]
    scaled = encoder.standardise(numbers)
    assert scaled.dtype == np.float32
    assert np.isfinite(scaled).all()
    assert (np.abs(scaled) <= 5).all()


@given(st.floats(-1e12, 1e12), st.integers(1, 50))
def test_a_constant_says_nothing(value, count):
    encoder = AttributeEncoder.fit({"x": "numeric"}, {"x": [value] * count})
    np.testing.assert_allclose(
        encoder.standardise(encoder.encode({"x": [value]}, 1).numbers), 0, atol=1e-5
    )
