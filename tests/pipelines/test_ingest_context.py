"""Columns of one's own of events: from files and from the log into the ingested tables."""

import json
from datetime import UTC, datetime

import numpy as np
import pytest

from feature_repo import columns as c
from feature_repo.dataset import DatasetSpec
from feature_repo.events.context import BadContext, checked_context
from pipelines.ingest.ingested import read_events
from pipelines.streaming.offline import EVENT_SCHEMA, Part, archive, write_part
from tests.support.ingest_folder import MAY, spec_of

FIELDS = {"page": "categorical", "query": "text", "speed": "numeric"}


def spec():
    plain = spec_of().model_dump()
    events = plain["events"] | {"context": FIELDS, "rename": {"page": "Seite"}}
    return DatasetSpec.model_validate(plain | {"events": events})


def test_the_context_of_events_is_read_from_files_and_from_the_log(world):
    head = "user,item,time,Seite,query,speed\n"
    world.write("events.csv", f"{head}u,a,{MAY}, home ,red shoes,1.5\nv,b,{MAY},null,,fast\n")
    report = world.ingest(spec())
    events = read_events(world.workspace).set_index(c.USER)
    assert events.loc["u", ["page", "query", "speed"]].tolist() == ["home", "red shoes", 1.5]
    assert events.loc["v", ["page", "query", "speed"]].isna().all()
    assert any("1 cells left empty: bad number in speed" in note for note in report.notes)

    now = datetime.now(UTC)
    contexts = [{"page": "mail", "speed": 2.0}, None, {"other": 1, "speed": "x", "page": " y "}]
    rows = [
        {
            "position": f"{1_700_000_000_000 + n}-0", "event_id": f"e{n}", "user_id": f"s{n}",
            "item_id": "a", "type": "interaction", "timestamp": now, "accepted_at": now,
            "context": context and json.dumps(context),
        }
        for n, context in enumerate(contexts)
    ]  # fmt: skip
    write_part(archive(world.workspace), Part(1, 0, 0), rows, EVENT_SCHEMA)
    world.ingest(spec())
    streamed = read_events(world.workspace).set_index(c.USER).loc[["s0", "s1", "s2"]]
    assert streamed["page"].fillna("-").tolist() == ["mail", "-", "y"]
    assert streamed["query"].isna().all()
    np.testing.assert_array_equal(streamed["speed"], [2.0, np.nan, np.nan])


def test_a_file_may_lack_a_column_of_the_context(world):
    whole = f"user,item,time,Seite,query,speed\nu,a,{MAY},home,red,1\n"
    world.write("one.csv", whole)
    world.write("two.csv", f"user,item,time,query\nv,a,{MAY},shoes\n")
    one = spec()
    world.ingest(one.model_copy(update={"events": one.events.model_copy(update={"path": "*.csv"})}))
    events = read_events(world.workspace).set_index(c.USER)
    assert events.loc["v", "query"] == "shoes"
    assert events.loc["v", ["page", "speed"]].isna().all()
    assert events.loc["u", ["page", "speed"]].tolist() == ["home", 1.0]


@pytest.mark.parametrize("name", ["value", "user_id", "positive", "month", "event_timestamp"])
def test_a_field_may_not_have_the_name_of_another_column(name):
    plain = spec_of().model_dump()
    events = plain["events"] | {"context": {name: "text"}}
    with pytest.raises(ValueError, match=f"{name}.*another column has the name"):
        DatasetSpec.model_validate(plain | {"events": events})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {}),
        ({"page": " home ", "speed": 1}, {"page": "home", "speed": 1.0}),
        ({"page": None, "query": "  ", "speed": None}, {}),
        ({"page": "null"}, {}),
        ({"pagee": "x"}, "context.pagee: there is no such field, only .'page', 'query', 'speed'."),
        ({"page": 3}, "context.page: 3 is not text"),
        ({"page": "x" * 1_001}, "longer than 1000 characters"),
        ({"speed": "3"}, "context.speed: '3' is not a number"),
        ({"speed": True}, "context.speed: True is not a number"),
        ({"speed": 1e16}, "context.speed: the number is beyond"),
        ({"speed": float("nan")}, "context.speed: the number is beyond"),
    ],
)
def test_a_context_is_checked_against_the_fields_of_the_data_set(given, expected):
    if isinstance(expected, dict):
        assert checked_context(given, FIELDS) == expected
        return
    with pytest.raises(BadContext, match=expected):
        checked_context(given, FIELDS)
