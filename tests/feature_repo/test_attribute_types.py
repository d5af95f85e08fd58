"""Every kind of attribute has one type, of which Feast's and Spark's are known by hand."""

from typing import get_args

from feast.types import Array, Float64, String

from feature_repo.attribute_types import ATTRIBUTE_TYPES
from feature_repo.dataset import AttributeKind
from feature_repo.declarations.views import _FEAST_TYPES
from pipelines.features.profiles import SPARK_TYPES


def test_all_three_know_every_kind():
    kinds = set(get_args(AttributeKind))
    assert set(ATTRIBUTE_TYPES) == set(_FEAST_TYPES) == set(SPARK_TYPES) == kinds


def test_the_derived_types():
    feast, spark = dict(_FEAST_TYPES), dict(SPARK_TYPES)
    assert feast == {
        "categorical": String,
        "multi_categorical": Array(String),
        "numeric": Float64,
        "text": String,
    }
    assert spark == {
        "categorical": "string",
        "multi_categorical": "array<string>",
        "numeric": "double",
        "text": "string",
    }
