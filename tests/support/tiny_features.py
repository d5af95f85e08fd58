"""The declared features of the tiny world: what a user writes beside a ``dataset.toml``."""

from datetime import timedelta

from feast import FeatureService, StreamFeatureView
from feast.aggregation import Aggregation

from feature_repo.declare import defaults, events, user

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

ranking = FeatureService(name="ranking", features=[*defaults.ranking, spend])
