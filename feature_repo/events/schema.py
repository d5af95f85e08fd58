"""The columns of ingested events, which the features are computed from."""

from __future__ import annotations

import pyarrow as pa

from feature_repo import columns as c

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
"""Arrow schema of the ingested events; Spark's follows from it."""
