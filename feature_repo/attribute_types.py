"""Arrow's type of each kind of attribute; the types of Feast and Spark follow from it."""

from __future__ import annotations

import pyarrow as pa

from feature_repo.dataset import AttributeKind

ATTRIBUTE_TYPES: dict[AttributeKind, pa.DataType] = {
    "categorical": pa.string(),
    "multi_categorical": pa.list_(pa.string()),
    "numeric": pa.float64(),
    "text": pa.string(),
}
