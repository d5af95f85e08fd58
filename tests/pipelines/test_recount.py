"""The recount of aggregates agrees with the states of the stream, with which it shares no code."""

import numpy as np
import pandas as pd
import pytest

from feature_repo import columns as c
from feature_repo.aggregates.definition import Aggregate, AggregateView
from feature_repo.aggregates.reading import EventReader
from feature_repo.aggregates.state import AggregateState
from feature_repo.units import DAY_MICROS, MICROS
from pipelines.operations.recount import expected_aggregates

HOUR = 3_600 * MICROS
NOW = 1_700_000_000 * MICROS
READER = EventReader({"view": 1.0, "buy": 3.0}, {"page": "categorical", "price": "numeric"})
AGGREGATES = (
    Aggregate("trend", "trend", "event_id", HOUR),
    Aggregate("pages", "top", "page", None, limit=2),
    Aggregate("shares", "top_shares", "page", HOUR, limit=2),
    Aggregate("paid", "sum", "price", HOUR, where="page != 'a' and value >= 3"),
    Aggregate("days", "count_distinct", "event_day", None),
    Aggregate("items", "last_distinct", "item_id", HOUR, ("buy",), limit=5),
    Aggregate("times", "last_distinct_times", "item_id", HOUR, ("buy",), limit=5),
    Aggregate("first", "min", "timestamp", HOUR),
    Aggregate("viewed", "count", "page", HOUR),
)


def test_every_function_column_and_condition_is_recounted():
    rng = np.random.default_rng(1)
    rows = [
        {
            c.EVENT_ID: f"e{n:03}", c.USER: "u", c.ITEM: f"i{rng.integers(20)}",
            c.TYPE: str(rng.choice(["view", "buy"])),
            "_micros": int(NOW - rng.integers(0, 3 * HOUR)),
            c.VALUE: None if n % 5 == 0 else float(rng.integers(100)) / 4,
            "page": None if n % 7 == 0 else str(rng.choice(["a", "b", "c"])),
            "price": None if n % 3 == 0 else float(rng.integers(50)),
        }
        for n in range(200)
    ]  # fmt: skip
    view = AggregateView("view", c.USER, AGGREGATES)
    state = AggregateState(view)
    state.add(
        READER.read(
            row["_micros"], row[c.EVENT_ID], row[c.TYPE],
            user="u", item=row[c.ITEM], value=row[c.VALUE],
            context={name: row[name] for name in ("page", "price")},
        )
        for row in rows
    )  # fmt: skip
    events = pd.DataFrame(rows).sort_values(["_micros", c.EVENT_ID])
    events[c.TIMESTAMP] = pd.to_datetime(events["_micros"], unit="us", utc=True)
    events[c.DAY] = events["_micros"] // DAY_MICROS
    expected = expected_aggregates(view, events, NOW / MICROS, READER.weights)
    found = state.values(NOW)
    assert found.keys() == expected.keys()
    shares = (found.pop("shares"), expected.pop("shares"))
    assert shares[0] == pytest.approx(shares[1])
    assert found.pop("trend") == pytest.approx(expected.pop("trend"))
    assert found == expected
