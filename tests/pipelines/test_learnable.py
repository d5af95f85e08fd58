"""A log that models cannot learn from is one sentence, before Spark starts."""

import pandas as pd
import pytest

from feature_repo.dataset import SpecError
from pipelines.features.point_in_time import catalogue_columns, ends_unlisted
from pipelines.ingest.ingested import read_events
from pipelines.training.learnable import check_learnable
from tests.support.command_line import funnel
from tests.support.ingest_folder import MAY, rows_of, spec_of

ITEMS = {"path": "items.csv", "key": "id", "attributes": {"name": "text"}}
DAY = 86_400


def log(users, items, days=100):
    """Return a log in which everybody knows the few items soon."""
    return rows_of(*(f"u{n % users},i{n % items},{MAY - (days - n) * 3_600}" for n in range(days)))


@pytest.mark.parametrize("items", [1, 2])
def test_a_small_catalogue_is_one_sentence(world, items):
    world.write("events.csv", log(users=5, items=items))
    world.ingest(spec_of())
    with pytest.raises(SpecError, match=f"the log has {items} items and 5 users") as refused:
        check_learnable(world.workspace)
    assert "of an item that its user did not know" in str(refused.value)


def test_the_demo_stops_before_spark(world):
    now = int(pd.Timestamp.now(tz="UTC").timestamp())
    world.write("events.csv", rows_of(*(f"u{n % 5},i,{now - n * 3_600}" for n in range(50))))
    lines = ['name = "tiny"', "[events]", 'path = "events.csv"', 'user = "user"', 'item = "item"']
    world.write("dataset.toml", "\n".join([*lines, 'timestamp = "time"']))
    options = ("--data", world.folder / "dataset.toml", "--home", world.workspace.root)
    done = funnel("demo", *options, "--no-serve")
    assert done.returncode == 2
    assert "nothing to learn from" in done.stderr
    assert "Features" not in done.stderr
    assert "Traceback" not in done.stderr


def test_new_items_for_users_can_be_learned_from(world):
    world.write("events.csv", rows_of(*(f"u{n},i{n % 7},{MAY + n}" for n in range(200))))
    world.ingest(spec_of())
    split = check_learnable(world.workspace, evaluated=True)
    assert split.ranker < split.test


def test_mostly_unavailable_items_are_refused(world):
    world.write("events.csv", rows_of(*(f"u{n},i{n % 7},{MAY + n}" for n in range(200))))
    rows = [f"i{n},N,2024-06-0{n % 2 + 1}" for n in range(7)]
    world.write("items.csv", "\n".join(["id,name,from", *rows]) + "\n")
    world.ingest(spec_of(items=ITEMS | {"available_from": "from"}))
    with pytest.raises(SpecError, match="100% of the positive events .* available_from"):
        check_learnable(world.workspace)


@pytest.mark.parametrize("recommend_unlisted", [None, False, True])
def test_the_item_table_is_the_catalogue(world, recommend_unlisted):
    world.write("events.csv", rows_of(f"u,a,{MAY}", f"u,gone,{MAY + 1}", f"v,a,{MAY + DAY}"))
    world.write("items.csv", "id,name\na,A\nb,B\n")
    given = {} if recommend_unlisted is None else {"recommend_unlisted": recommend_unlisted}
    spec = spec_of(items=ITEMS | given)
    world.ingest(spec)
    events = read_events(world.workspace)
    assert ends_unlisted(spec, world.workspace.ingest, events) == (not recommend_unlisted)
    ids, columns = catalogue_columns(spec, world.workspace.ingest, events)
    assert ids == ["a", "b", "gone"]
    begin, end = columns["available_from"], columns["available_until"]
    assert begin[:2] == end[:2] == [None, None]
    assert MAY + 1 < begin[2] < MAY + 1.001
    if recommend_unlisted:
        assert end[2] is None
    else:  # until the log ends: its own last event would tell the past that it has no future
        assert MAY + DAY < end[2] < MAY + DAY + 0.001


def test_without_an_item_table_the_log_is_the_catalogue(world):
    world.write("events.csv", rows_of(f"u,a,{MAY}", f"u,b,{MAY + 1}"))
    world.ingest(spec_of())
    _, columns = catalogue_columns(spec_of(), world.workspace.ingest, read_events(world.workspace))
    assert columns["available_until"] == [None, None]
