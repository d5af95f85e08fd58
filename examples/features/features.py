"""Features of one's own: spending, prices, a table of margins, and the price against the budget."""

from datetime import timedelta

import pandas as pd
from feast import FeatureService, FeatureView, Field, FileSource, StreamFeatureView
from feast.aggregation import Aggregation
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64

from feature_repo.declare import defaults, events, item, user

HOUR, WEEK = timedelta(hours=1), timedelta(days=7)
PURCHASES = {"source": events, "timestamp_field": "timestamp", "tags": {"event_types": "purchase"}}

spend = StreamFeatureView(name="spend", entities=[user], **PURCHASES, aggregations=[
    Aggregation(column="value", function="sum", time_window=HOUR, name="spend_1h"),
    Aggregation(column="value", function="sum", time_window=WEEK, name="spend_7d"),
    Aggregation(column="value", function="max", name="dearest"),
    Aggregation(column="event_id", function="count", time_window=WEEK, name="bought_7d"),
])  # fmt: skip
bought = StreamFeatureView(name="bought", entities=[item], **PURCHASES, aggregations=[
    Aggregation(column="value", function="mean", time_window=WEEK, name="paid_7d"),
    Aggregation(column="value", function="last", name="last_paid"),
])  # fmt: skip
margins = FeatureView(name="margins", entities=[item],
    source=FileSource(path="margins.parquet", timestamp_field="known_from"))  # fmt: skip


@on_demand_feature_view(
    sources=[spend[["dearest"]], bought[["last_paid"]]],
    schema=[Field(name="price_to_dearest", dtype=Float64)],
)
def affordable(inputs: pd.DataFrame) -> pd.DataFrame:
    """Return an item's last price by the most that the user ever paid."""
    return pd.DataFrame({"price_to_dearest": inputs["last_paid"] / inputs["dearest"]})


ranking = FeatureService(
    name="ranking", features=[*defaults.ranking, spend, bought, margins, affordable]
)
