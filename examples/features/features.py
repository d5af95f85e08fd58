"""Features of one's own: spending, prices, a table of margins, and the price against the budget."""

from datetime import timedelta

import pandas as pd
from feast import FeatureService, FeatureView, Field, FileSource, RequestSource, StreamFeatureView
from feast.aggregation import Aggregation
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64, String

from feature_repo.declare import defaults, events, item, user

PURCHASES = {"source": events, "timestamp_field": "timestamp", "tags": {"event_types": "purchase"}}

spend = StreamFeatureView(name="spend", entities=[user], **PURCHASES, aggregations=[
    Aggregation(column="value", function="sum", time_window=timedelta(hours=1), name="spend_1h"),
    Aggregation(column="value", function="max", name="dearest"),
    Aggregation(function="count", time_window=timedelta(days=7), name="bought_7d", column="value"),
])  # fmt: skip
bought = StreamFeatureView(name="bought", entities=[item], **PURCHASES, aggregations=[
    Aggregation(column="value", function="mean", time_window=timedelta(days=7), name="paid_7d"),
    Aggregation(column="value", function="last", name="last_paid"),
])  # fmt: skip
margins = FeatureView(name="margins", entities=[item],  # a number and a vector of each item
    source=FileSource(path="margins.parquet", timestamp_field="known_from"))  # fmt: skip
visit = RequestSource(name="visit", schema=[Field(name="page", dtype=String)])


@on_demand_feature_view(sources=[spend[["dearest"]], bought[["last_paid"]], visit],
    schema=[Field(name=name, dtype=Float64) for name in ("price_ratio", "on_deals")])  # fmt: skip
def dear(inputs: pd.DataFrame) -> pd.DataFrame:
    """Return an item's last price by the dearest purchase of the user, and that on one page."""
    ratio = inputs["last_paid"] / inputs["dearest"]
    on_deals = ratio * (inputs["page"] == "deals")
    return pd.DataFrame({"price_ratio": ratio, "on_deals": on_deals})


user_tower = FeatureService(name="user_tower", features=[*defaults.user_tower, spend])
item_tower = FeatureService(name="item_tower", features=[*defaults.item_tower, margins])
ranking = FeatureService(name="ranking", features=[*defaults.ranking, spend, bought, margins, dear])
