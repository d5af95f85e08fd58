"""Which users, items and events are which: missing ids, ids as floats, repeats, equal times."""

import json

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feature_repo.cell_values import NULL_WORDS, stands_for_nothing
from pipelines.ingest.identity import in_file_order, own_id
from pipelines.ingest.ids import read_ids, repaired
from tests.support.ingest_folder import MAY, World, rows_of, spec_of

KEPT = ["0", "-1", "anonymous", "0017", "90.750", "1e3", "+5", "nullable", "Nana", "x y"]


def column(*texts):
    return pd.Series(texts, dtype="string[pyarrow]")


@pytest.mark.parametrize(
    "word", ["undefined", "null", "None", "NaN", "nan", "\\N", " ", "\t", "N/A"]
)
def test_words_for_nothing_are_missing_ids(world, word):
    world.write(
        "events.csv", rows_of(f"{word},i,{MAY}", f"u,{word},{MAY}", *(f"{k},i,{MAY}" for k in KEPT))
    )
    report = world.ingest(spec_of())
    assert set(world.events()["user_id"]) == set(KEPT)
    assert world.reasons() == {
        ("events.csv", 2): "missing user_id",
        ("events.csv", 3): "missing item_id",
    }
    if word.strip():
        assert any(repr(word) in note for note in report.notes)


@given(word=st.sampled_from(sorted(NULL_WORDS)), blanks=st.sampled_from(["", " ", "\t"]))
def test_words_for_nothing_in_any_case(word, blanks):
    for spelt in (word, word.upper(), word.title()):
        assert stands_for_nothing(f"{blanks}{spelt}{blanks}")
        assert read_ids(column(f"{blanks}{spelt}", "u")).isna().tolist() == [True, False]


@pytest.mark.parametrize(
    ("ids", "keys", "expected"),
    [
        (["1.0", "2.00", None], None, ["1", "2", None]),
        (["1.0", "2.5"], None, ["1.0", "2.5"]),
        (["1.0", "x"], None, ["1.0", "x"]),
        (["1.0", "x"], {"1"}, ["1", "x"]),
        (["1.0", "2.0"], {"1.0", "2"}, ["1.0", "2"]),
        (["1.0", "9.0"], {"1"}, ["1", "9"]),
        (["-1.0", "0.0"], None, ["-1", "0"]),
        *(([kept], {"17", "90.75", "1000", "5"}, [kept]) for kept in KEPT),
    ],
)
def test_ids_written_as_floats(ids, keys, expected):
    found = repaired(column(*ids), None if keys is None else frozenset(keys))
    assert [None if pd.isna(one) else one for one in found] == expected


@pytest.mark.parametrize("kind", ["log", "table"])
def test_log_and_table_meet_whoever_wrote_floats(world, kind):
    log, table = ("1001.0", "1001") if kind == "log" else ("1001", "1001.0")
    world.write("events.csv", rows_of(f"u,{log},{MAY}", f"v,{log},{MAY}"))
    world.write("items.csv", f"id,t\n{table},T\n")
    items = {"path": "items.csv", "key": "id", "attributes": {"t": "text"}}
    report = world.ingest(spec_of(items=items))
    assert set(world.events()["item_id"]) == {"1001"}
    assert report.figures.items.unlisted == []


def test_an_order_s_id_names_no_event(world):
    header = "user,item,time,id"
    lines = [f"u,i1,{MAY},o1", f"u,i2,{MAY},o1", f"u,i1,{MAY},o1", f"v,i1,{MAY},o2"]
    world.write("events/1.csv", rows_of(*lines, header=header))
    report = world.ingest(spec_of("events", id="id"))
    assert sorted(world.events()["item_id"]) == ["i1", "i1", "i2"]
    assert world.reasons() == {("events/1.csv", 4): "duplicate"}
    assert any("1 rows have the id of a row that differs" in note for note in report.notes)

    # A later file repeats some rows, and has another of the same order.
    again = [*lines[:2], f"u,i3,{MAY},o1", f"w,i1,{MAY},o3"]
    world.write("events/2.csv", rows_of(*again, header=header))
    world.ingest(spec_of("events", id="id"))
    assert sorted(world.events()["item_id"]) == ["i1", "i1", "i1", "i2", "i3"]
    assert world.reasons() == {
        ("events/1.csv", 4): "duplicate",
        ("events/2.csv", 2): "duplicate",
        ("events/2.csv", 3): "duplicate",
    }


@pytest.mark.parametrize("shift_to_now", [False, True])
def test_repeats_are_known_whatever_the_shift(world, shift_to_now):
    header = "user,item,time,id"
    world.write("events/1.csv", rows_of(f"u,i1,{MAY},o1", f"u,i2,{MAY},o2", header=header))
    world.ingest(spec_of("events", id="id"), shift_to_now=shift_to_now)
    world.write("events/2.csv", rows_of(f"u,i1,{MAY},o1", f"u,i9,{MAY},o2", header=header))
    report = world.ingest(spec_of("events", id="id"), shift_to_now=shift_to_now)
    assert (report.events, report.total_events) == (1, 3)
    assert report.quarantined == {"duplicate": 1}


ROW = st.tuples(st.sampled_from("uv"), st.sampled_from("abc"), st.integers(0, 2))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(rows=st.lists(ROW, min_size=1, max_size=12), own=st.booleans(), ids=st.integers(1, 3))
def test_rows_that_differ_are_events_and_in_the_order_of_the_file(rows, own, ids, tmp_path_factory):
    world = World(tmp_path_factory.mktemp("world"))
    told = [(*row, f"e{n % ids}") if own else row for n, row in enumerate(rows)]
    lines = [",".join(map(str, (r[0], r[1], MAY + r[2], *r[3:]))) for r in told]
    header = "user,item,time,id" if own else "user,item,time"
    world.write("events.csv", rows_of(*lines, header=header))
    spec = spec_of(id="id") if own else spec_of()
    report = world.ingest(spec)
    distinct = list(dict.fromkeys(told))
    events = world.events()
    assert len(events) == len(distinct)
    assert report.quarantined.get("duplicate", 0) == len(told) - len(distinct)
    for user in set(events["user_id"]):
        mine = [row for row in distinct if row[0] == user]
        expected = [row[1] for row in sorted(mine, key=lambda row: row[2])]
        assert events.loc[events["user_id"] == user, "item_id"].tolist() == expected
    # Told again in another file, they are all known.
    world.write("events.csv", rows_of(*lines, "", header=header))
    assert world.ingest(spec).events == 0


def test_ids_that_sort_in_the_order_of_the_file_stay():
    events = pd.DataFrame(
        {"user_id": ["u", "u", "v"], "timestamp": [1, 1, 1], "event_id": ["a", "b", "c"]}
    )
    assert in_file_order(events)["event_id"].tolist() == ["a", "b", "c"]
    placed = in_file_order(events.assign(event_id=["b", "a", "c"]))["event_id"].tolist()
    assert placed == ["00000000~b", "00000001~a", "c"]
    assert [own_id(one) for one in placed] == ["b", "a", "c"]
    assert own_id("short~x") == "short~x"


def test_one_word_in_another_case(world):
    world.write(
        "events.csv",
        rows_of(
            *(
                f"u,i{n},{MAY},{word}"
                for n, word in enumerate(["view", "VIEW", " View ", "buy", "?"])
            ),
            header="user,item,time,type",
        ),
    )
    types = {"view": {"positive": True}, "bought": {"positive": True}}
    report = world.ingest(spec_of(type="type", types=types, rename_types={"buy": "bought"}))
    assert world.events()["type"].tolist().count("view") == 3
    assert world.reasons() == {("events.csv", 6): "unknown event type"}
    assert any("the type VIEW is read as view" in note for note in report.notes)
    assert any("unknown event type, such as '?' in events.csv, line 6" in n for n in report.notes)


def test_values_are_bounded(world):
    lines = [f"u,i,{MAY},{value}" for value in ("1e15", "-1e15", "1e308", "nan", "")]
    world.write("events.csv", rows_of(*lines, header="user,item,time,paid"))
    report = world.ingest(spec_of(value="paid"))
    assert world.reasons() == {
        ("events.csv", 4): "value beyond ±1e15",
        ("events.csv", 6): "duplicate",
    }
    assert report.events == 3
    assert json.loads(world.quarantine()["row"][0])["paid"] == "1e308"
