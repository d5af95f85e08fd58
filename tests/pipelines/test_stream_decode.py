"""What a log holds is not trusted: entries that the API would refuse are dead letters."""

import json

import pandas as pd
import pytest

from pipelines.ingest.report import IngestReport
from pipelines.ingest.streamed import usable_events
from pipelines.streaming.decode import PoisonError, checked_event

EVENT = {
    "event_id": "e",
    "user_id": "u",
    "item_id": "i",
    "type": "view",
    "timestamp": 1_791_194_400.0,
    "value": 6e12,
}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"value": 1e308}, "value beyond ±1e15"),
        ({"value": -1.1e15}, "value beyond ±1e15"),
        ({"user_id": "undefined"}, "user_id stands for a missing id"),
        ({"item_id": "\\N"}, "item_id stands for a missing id"),
        ({"user_id": " \t"}, "user_id stands for a missing id"),
    ],
)
def test_bounds_and_missing_ids_hold_for_every_writer(change, reason):
    assert checked_event(json.dumps(EVENT), ["view"]) == EVENT
    with pytest.raises(PoisonError, match=reason.replace("±", ".")):
        checked_event(json.dumps(EVENT | change), ["view"])


def test_what_an_earlier_api_accepted_is_not_ingested():
    events = pd.DataFrame(
        {
            "user_id": ["u", "null", "v", "w"],
            "item_id": ["i", "i", "i", " "],
            "value": [1.0, None, 1e308, None],
        }
    )
    report = IngestReport()
    assert usable_events(events, report)["user_id"].tolist() == ["u"]
    assert report.quarantined == {
        "value beyond ±1e15": 1,
        "missing user_id": 1,
        "missing item_id": 1,
    }
    assert len(report.notes) == 3
