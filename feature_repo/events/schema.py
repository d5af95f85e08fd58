"""The columns of ingested events, which the features are computed from."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from feature_repo import columns as c
from feature_repo.attribute_types import ATTRIBUTE_TYPES
from feature_repo.dataset import ContextKind

EVENT_SCHEMA = pa.schema(
    [
        (c.EVENT_ID, pa.string()),
        (c.USER, pa.string()),
        (c.ITEM, pa.string()),
        (c.TIMESTAMP, pa.timestamp("us", tz="UTC")),
        (c.TYPE, pa.string()),
        (c.VALUE, pa.float64()),
        (c.WEIGHT, pa.float64()),
        (c.POSITIVE, pa.bool_()),
    ]
)
"""Arrow schema of the ingested events without their context; Spark's follows from it."""


def event_schema(context: Mapping[str, ContextKind]) -> pa.Schema:
    """Return the schema of the ingested events of a data set with these fields of context."""
    fields = [pa.field(name, ATTRIBUTE_TYPES[kind]) for name, kind in context.items()]
    return pa.schema([*EVENT_SCHEMA, *fields])
