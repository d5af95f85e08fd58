"""Features of one's own: what users spend, what items are bought for, and a table of margins."""

from datetime import timedelta

from feast import FeatureService, FeatureView, FileSource, StreamFeatureView
from feast.aggregation import Aggregation

from feature_repo.declare import defaults, events, item, user

HOUR = timedelta(hours=1)
WEEK = timedelta(days=7)

spend = StreamFeatureView(
    name="spend",
    entities=[user],
    source=events,
    timestamp_field="timestamp",
    tags={"event_types": "purchase"},
    aggregations=[
        Aggregation(column="value", function="sum", time_window=HOUR, name="spend_1h"),
        Aggregation(column="value", function="sum", time_window=WEEK, name="spend_7d"),
        Aggregation(column="value", function="max", name="dearest"),
        Aggregation(column="event_id", function="count", time_window=WEEK, name="bought_7d"),
    ],
)

bought = StreamFeatureView(
    name="bought",
    entities=[item],
    source=events,
    timestamp_field="timestamp",
    tags={"event_types": "purchase"},
    aggregations=[
        Aggregation(column="value", function="mean", time_window=WEEK, name="paid_7d"),
        Aggregation(column="value", function="last", name="last_paid"),
    ],
)

margins = FeatureView(
    name="margins",
    entities=[item],
    source=FileSource(path="margins.parquet", timestamp_field="known_from"),
)

ranking = FeatureService(name="ranking", features=[*defaults.ranking, spend, bought, margins])
