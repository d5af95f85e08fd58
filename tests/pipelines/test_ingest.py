"""Ingest: every row is in the events table or in quarantine, once; runs repeat, grow and survive being killed."""

import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feature_repo.dataset import DatasetSpec, SpecError, load_spec
from feature_repo.workspace import MissingStage, Workspace, read_json
from pipelines.ingest import EVENT_SCHEMA, event_files, ingest, read_events
from pipelines.parsing import parse_times
from pipelines.stages import SPECS

NOW = pd.Timestamp("2024-06-15T12:00:00Z")
MAY = 1_714_564_800  # 2024-05-01T12:00:00Z
WEEK = 7 * 86_400


def spec_of(path="events.csv", users=None, items=None, **events):
    columns = {"user": "user", "item": "item", "timestamp": "time"}
    raw = {"name": "tiny", "events": {"path": path, **columns, **events}, "users": users, "items": items}
    return DatasetSpec.model_validate({key: value for key, value in raw.items() if value is not None})


TYPED = {
    "type": "type",
    "value": "value",
    "types": {"view": {"positive": True}, "buy": {"weight": 5, "positive": True}},
}


class World:
    """A data folder, and a workspace to bring it into."""

    def __init__(self, root):
        self.folder, self.workspace = root / "data", Workspace(root / "work")
        self.folder.mkdir()

    def write(self, name, content):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    def ingest(self, spec, now=NOW, **options):
        return ingest(spec, self.folder, self.workspace, now=now, **options)

    def events(self):
        return read_events(self.workspace)

    def quarantine(self):
        files = sorted((self.workspace.ingest / "quarantine").glob("*.parquet"))
        found = pd.concat([pq.read_table(path).to_pandas() for path in files], ignore_index=True)
        return found.sort_values(["file", "line"], ignore_index=True)

    def reasons(self):
        found = self.quarantine()
        keys = list(zip(found["file"], found["line"], strict=True))
        assert len(keys) == len(set(keys))
        return dict(zip(keys, found["reason"], strict=True))

    def bytes(self):
        return {
            path.relative_to(self.workspace.root).as_posix(): path.read_bytes()
            for path in self.workspace.root.rglob("*")
            if path.is_file()
        }


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def rows_of(*lines, header="user,item,time"):
    return "\n".join([header, *lines]) + "\n"


# What a good table looks like


def test_events_are_typed_ordered_and_parted_by_month(world):
    lines = [f"u2,i1,{MAY + 40 * 86_400},view,", f"u1,i1,{MAY},buy,9.5", f" u1 , i2 ,{MAY}.5,view,1"]
    world.write("events.csv", rows_of(*lines, header="user,item,time,type,value"))
    report = world.ingest(spec_of(**TYPED))
    events = world.events()
    assert events["user_id"].tolist() == ["u1", "u1", "u2"]
    assert events["timestamp"].dt.unit == "us"
    assert events["timestamp"].astype("int64").tolist() == [
        MAY * 10**6,
        MAY * 10**6 + 500_000,
        (MAY + 40 * 86_400) * 10**6,
    ]
    assert events["weight"].tolist() == [5.0, 1.0, 1.0]
    assert events["value"].tolist()[:2] == [9.5, 1.0]
    assert np.isnan(events["value"][2])
    assert events["positive"].all()
    files = event_files(world.workspace)
    assert [Path(name).parent.name for name in files] == ["month=2024-05", "month=2024-06"]
    for name in files:
        assert pq.read_schema(name).equals(EVENT_SCHEMA)
        months = pq.read_table(name, partitioning=None).to_pandas()["timestamp"].dt.strftime("%Y-%m")
        assert set(months) == {Path(name).parent.name.removeprefix("month=")}
    assert (report.files, report.events, report.total_events, report.quarantined.total()) == (1, 3, 3, 0)
    assert read_json(world.workspace.ingest / "report.json") == report.as_dict()
    assert read_events(world.workspace, ["user_id"]).columns.tolist() == ["event_id", "timestamp", "user_id"]


def test_the_spec_is_kept_in_its_declared_order(world):
    world.write("events.csv", rows_of(f"u,i,{MAY},view,", header="user,item,time,type,value"))
    world.ingest(spec_of(**TYPED))
    assert world.workspace.spec() == spec_of(**TYPED)
    assert world.workspace.spec().event_types == ["view", "buy"]


def test_every_format_gives_the_same_events(tmp_path):
    table = pd.DataFrame({"user": ["ü1", "用户"], "item": ["i1", "i,2"], "time": [MAY, MAY + 1]})
    text = table.to_csv(index=False)
    writers = {
        "events.csv": lambda path: path.write_text(text),
        "events.csv.gz": lambda path: path.write_bytes(gzip.compress(text.encode())),
        "events.parquet": table.to_parquet,
        "moments.parquet": table.assign(time=pd.to_datetime(table["time"], unit="s")).to_parquet,
        "zoned.parquet": table.assign(
            time=pd.to_datetime(table["time"], unit="s", utc=True).dt.tz_convert("Asia/Tokyo")
        ).to_parquet,
        "events.jsonl": lambda path: table.to_json(path, orient="records", lines=True),
        "events.ndjson.gz": lambda path: table.to_json(path, orient="records", lines=True, compression="gzip"),
        "folder/part.csv": lambda path: path.write_text(text),
        "text.dat": lambda path: path.write_text(text.replace('"i,2"', "i¦2").replace(",", "::").replace("¦", ",")),
    }
    found = {}
    for number, (name, write) in enumerate(writers.items()):
        root = tmp_path / str(number)
        root.mkdir()
        world = World(root)
        (world.folder / name).parent.mkdir(exist_ok=True)
        write(world.folder / name)
        options = {"separator": "::"} if name == "text.dat" else {}
        world.ingest(spec_of(name.split("/")[0], **options))
        found[name] = world.events()
    for name, events in found.items():
        assert events["user_id"].tolist() == ["ü1", "用户"], name
        pd.testing.assert_frame_equal(events, found["events.csv"], obj=name)


@pytest.mark.parametrize(
    ("unit", "texts"),
    [
        ("auto", [f"{MAY}", f"{MAY}000", f"{MAY}000000", f"{MAY}.0", f"{MAY / 1e9}e9"]),
        ("auto", ["2024-05-01T12:00:00Z", "2024-05-01 12:00", "2024-05-01T14:00:00+02:00", "2024-05-01T12:00:00.000"]),
        ("s", [f"{MAY}"]),
        ("ms", [f"{MAY}000"]),
        ("us", [f"{MAY}000000"]),
        ("iso", ["2024-05-01T12:00:00Z", "20240501T120000", "2024-05-01T08:00:00-04", "2024-05-01T12:00"]),
    ],
)
def test_times(unit, texts):
    parsed = parse_times(pd.Series(texts, dtype="string[pyarrow]"), unit)
    assert parsed.dtype == "datetime64[us, UTC]"
    assert set(parsed) == {pd.Timestamp(MAY, unit="s", tz="UTC")}


@pytest.mark.parametrize(
    ("unit", "text"),
    [
        ("iso", "now"),
        ("iso", "today"),
        ("iso", "2024-13-01"),
        ("iso", "1714564800"),
        ("iso", "9999-01-01"),
        ("s", "1e300"),
    ]
    + [("s", text) for text in ("soon", "inf", "nan", "2024-05-01", "1e16", "1_0")],
)
def test_unreadable_times(unit, text):
    assert parse_times(pd.Series([text, None], dtype="string[pyarrow]"), unit).isna().all()


def test_types_follow_from_the_value(world):
    types = {"rate": {"min_value": 0}, "love": {"min_value": 5, "positive": True}, "like": {"min_value": 4}}
    world.write(
        "events.csv",
        rows_of(*(f"u{n},i,{MAY},{v}" for n, v in enumerate([5, 4.5, 3, -1, "", "x"])), header="user,item,time,stars"),
    )
    world.ingest(spec_of(value="stars", types=types))
    events = world.events().sort_values("user_id")
    assert events["type"].tolist() == ["love", "like", "rate"]
    assert events["positive"].tolist() == [True, False, False]
    assert world.reasons() == {
        ("events.csv", 5): "unknown event type",
        ("events.csv", 6): "unknown event type",
        ("events.csv", 7): "bad number; unknown event type",
    }


def test_one_type_with_a_threshold_keeps_to_it(world):
    world.write("events.csv", rows_of(f"u1,i,{MAY},5", f"u2,i,{MAY},1", header="user,item,time,stars"))
    world.ingest(spec_of(value="stars", types={"like": {"min_value": 4, "positive": True}}))
    assert world.events()["user_id"].tolist() == ["u1"]
    assert world.reasons() == {("events.csv", 3): "unknown event type"}


def test_one_column_may_serve_twice(world):
    world.write("events.csv", rows_of(f"u,i,{MAY}"))
    world.ingest(spec_of(value="time", id="time"))
    assert world.events()[["event_id", "value"]].to_numpy().tolist() == [[str(MAY), float(MAY)]]


# What happens to bad rows

REASONS = {
    f",i,{MAY},view,": "missing user_id",
    f"u,  ,{MAY},view,": "missing item_id",
    "u,i,,view,": "missing timestamp",
    "u,i,soon,view,": "unreadable timestamp",
    f"u,i,{MAY + 52 * WEEK},view,": "timestamp in the future",
    "u,i,0,view,": "timestamp before 1970",
    f"u,i,{MAY},steal,": "unknown event type",
    f"u,i,{MAY},,": "unknown event type",
    f"u,i,{MAY},view,much": "bad number",
    f"u,i,{MAY},view,inf": "bad number",
    f"u,i,{MAY}": "broken line: wrong number of columns",
    f"u,i,{MAY},view,,,": "broken line: wrong number of columns",
    f"u,{'i' * 257},{MAY},view,": "item_id longer than 256 characters",
    ",,,,x": "missing user_id; missing item_id; missing timestamp; bad number; unknown event type",
}


def test_each_reason(world):
    good = f"{'u' * 256},{'é' * 256},{MAY},view,"
    world.write("events.csv", rows_of(good, *REASONS, good, header="user,item,time,type,value"))
    report = world.ingest(spec_of(**TYPED))
    expected = [*REASONS.values(), "duplicate"]
    assert list(world.reasons().values()) == expected
    assert [line for _, line in world.reasons()] == list(range(3, 3 + len(expected)))
    assert dict(report.quarantined) == {reason: expected.count(reason) for reason in expected}
    assert world.events()["item_id"].tolist() == ["é" * 256]
    kept = json.loads(world.quarantine()["row"][6])
    assert kept == {"user": "u", "item": "i", "time": str(MAY), "type": "steal", "value": None}


def test_the_skew_of_clocks_is_forgiven(world):
    seconds = int(NOW.timestamp())
    world.write("events.csv", rows_of(f"u1,i,{seconds + 86_000}", f"u2,i,{seconds + 87_000}"))
    world.ingest(spec_of())
    assert world.reasons() == {("events.csv", 3): "timestamp in the future"}


def test_given_ids_count(world):
    world.write(
        "events.csv",
        rows_of(f"u,i,{MAY},e1", f"u,i,{MAY},e2", f"v,j,{MAY},e1", f"w,i,{MAY},", header="user,item,time,id"),
    )
    world.ingest(spec_of(id="id"))
    assert world.events()["event_id"].tolist() == ["e1", "e2"]
    assert world.reasons() == {("events.csv", 4): "duplicate", ("events.csv", 5): "missing event_id"}


def test_json_values_that_are_lists_do_no_harm(world):
    lines = [{"user": ["a"], "item": {"b": 1}, "time": MAY}, {"user": "u", "item": "i", "time": [MAY]}]
    world.write("events.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    world.ingest(spec_of("events.jsonl"))
    assert world.events()["user_id"].tolist() == ['["a"]']
    assert world.reasons() == {("events.jsonl", 2): "unreadable timestamp"}


KINDS = {
    "good": (b"%(u)s,i,%(t)s,view,1", None),
    "quoted": (b'%(u)s,"i\nj, ""k""",%(t)s,buy,', None),
    "id": (b",i,%(t)s,view,", "missing user_id"),
    "time": (b"%(u)s,i,soon,view,", "unreadable timestamp"),
    "future": (b"%(u)s,i,1900000000,view,", "timestamp in the future"),
    "type": (b"%(u)s,i,%(t)s,steal,", "unknown event type"),
    "number": (b"%(u)s,i,%(t)s,view,1.2.3", "bad number"),
    "short": (b"%(u)s,i,%(t)s", "broken line"),
    "long": (b"%(u)s,i,%(t)s,view,1,1", "broken line"),
    "open": (b'%(u)s,"i,%(t)s,view,1', "broken line"),
    "bytes": (b"%(u)s,\xff,%(t)s,view,1", "not valid utf-8"),
    "nul": (b"%(u)s,\0,%(t)s,view,1", "broken line"),
    "again": (b"first,i,%(t)s,view,1", "duplicate"),
    "blank": (b"", None),
}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    files=st.lists(st.lists(st.sampled_from(sorted(KINDS)), max_size=15), min_size=1, max_size=3),
    end=st.sampled_from([b"\n", b"\r\n"]),
    bom=st.booleans(),
    last=st.booleans(),
    together=st.booleans(),
)
def test_every_row_is_an_event_or_in_quarantine_once(files, end, bom, last, together, tmp_path_factory):
    world = World(tmp_path_factory.mktemp("world"))
    spec = spec_of("events", **TYPED)
    world.write("events/0.csv", rows_of(f"first,i,{MAY},view,1", header="user,item,time,type,value"))
    users, reasons = {"first"}, {}
    for number, kinds in enumerate(files, start=1):
        name, line = f"events/{number}.csv", 3
        lines = [b"user,item,time,type,value", b"head%d,i,%d,view," % (number, MAY)]  # no two files are equal
        users.add(f"head{number}")
        for kind in kinds:
            text, reason = KINDS[kind]
            user = f"u{number}-{line}"
            lines.append(text % {b"u": user.encode(), b"t": b"%d" % MAY} if b"%" in text else text)
            if reason:
                reasons[name, line] = reason
            elif kind != "blank":
                users.add(user)
            line += 1 + lines[-1].count(b"\n")
        text = end.join(part.replace(b"\n", end) for part in lines) + (end if last else b"")
        world.write(name, (b"\xef\xbb\xbf" if bom else b"") + text)
        if not together:
            world.ingest(spec)
    report = world.ingest(spec)
    events = world.events()
    assert sorted(events["user_id"]) == sorted(users)
    assert set(events["item_id"]) <= {"i", 'i\nj, "k"'}
    found = world.reasons()
    assert found.keys() == reasons.keys()
    assert all(found[key].startswith(reason) for key, reason in reasons.items())
    assert report.total_events == len(users)
    assert together is False or report.quarantined.total() == len(reasons)


# Users and items

ITEMS = {
    "path": "items",
    "key": "id",
    "attributes": {"title": "text", "tags": "multi_categorical", "price": "numeric"},
    "rename": {"title": "name"},
    "available_from": "from",
}


def test_entities(world):
    world.write("events.csv", rows_of(f"u,i,{MAY}"))
    world.write(
        "items/1.csv", 'id,name,tags,price,from\nb,"B, ""b""",x| y ||,2.5,2024-05-01\na,old,,,\nc,C,,dear,\n,N,,,\n'
    )
    world.write("items/2.csv", "id,name,tags,price,from\na,new,z,,\nd,D,,,soon\ne,E,,,2024-05-01\na,bad,,x,\n")
    report = world.ingest(spec_of(items=ITEMS), shift_to_now=True)
    found = pq.read_table(world.workspace.ingest / "items.parquet").to_pandas()
    assert found["item_id"].tolist() == ["a", "b", "e"]
    assert found["title"].tolist() == ["new", 'B, "b"', "E"]
    assert [list(tags) for tags in found["tags"]] == [["z"], ["x", "y"], []]
    assert found["price"].isna().tolist() == [True, False, True]
    moved = pd.Timestamp("2024-05-01", tz="UTC") + pd.Timedelta(seconds=report.shift_s)
    assert found["available_from"].tolist() == [pd.NaT, moved, moved]
    assert world.reasons() == {
        ("items/1.csv", 3): "duplicate item_id: a later row replaces it",
        ("items/1.csv", 4): "bad number in price",
        ("items/1.csv", 5): "missing item_id",
        ("items/2.csv", 3): "unreadable available_from",
        ("items/2.csv", 5): "bad number in price",
    }
    assert report.items == 3


def test_entities_follow_their_files(world):
    users = {"path": "users.jsonl", "key": "id", "attributes": {"langs": "multi_categorical", "raw_x": "text"}}
    world.write("events.csv", rows_of(f"u,i,{MAY}"))
    world.write("users.jsonl", '{"id": 1, "langs": ["en", null, "de"], "raw_x": "a"}\n')
    first = world.ingest(spec_of(users=users))
    world.write("users.jsonl", '{"id": 1, "langs": "en|fr", "raw_x": null}\n{"id": 2, "langs": null}\n')
    second = world.ingest(spec_of(users=users))
    found = pq.read_table(world.workspace.ingest / "users.parquet").to_pandas()
    assert found["user_id"].tolist() == ["1", "2"]
    assert [list(langs) for langs in found["langs"]] == [["en", "fr"], []]
    assert (second.files, second.events, second.users) == (0, 0, 2)
    assert first.data_version != second.data_version


# Again, and more


def test_the_same_files_again_change_nothing(world):
    world.write("events/a.csv", rows_of(f"u,i,{MAY}", "u,,1"))
    first = world.ingest(spec_of("events"))
    before = world.bytes()
    again = world.ingest(spec_of("events"), now=NOW + pd.Timedelta(days=30))
    assert world.bytes() == before
    assert (again.files, again.events, again.total_events) == (0, 0, 1)
    assert again.data_version == first.data_version
    world.write("events/copy.csv", rows_of(f"u,i,{MAY}", "u,,1"))
    assert world.ingest(spec_of("events")).files == 0
    assert world.bytes() == before


def test_equal_files_in_one_run_are_one(world):
    for name in ("a", "b"):
        world.write(f"events/{name}.csv", rows_of(f"u,i,{MAY}"))
    report = world.ingest(spec_of("events"))
    assert (report.files, report.events, report.quarantined.total()) == (1, 1, 0)


def test_new_files_add_and_overlaps_are_duplicates(world):
    world.write("events/1/part.csv", rows_of(f"u1,i,{MAY}", f"u2,i,{MAY}"))
    first = world.ingest(spec_of("events"))
    kept = {name: data for name, data in world.bytes().items() if "/events/" in name}
    world.write("events/2/part.csv", rows_of(f"u2,i,{MAY}", f"u3,i,{MAY}", f"u3,i,{MAY}"))
    second = world.ingest(spec_of("events"))
    assert sorted(world.events()["user_id"]) == ["u1", "u2", "u3"]
    assert world.reasons() == {("events/2/part.csv", 2): "duplicate", ("events/2/part.csv", 4): "duplicate"}
    assert (second.files, second.events, second.total_events) == (1, 1, 3)
    assert first.data_version != second.data_version
    assert kept.items() <= world.bytes().items()


def test_an_appended_file_adds_its_new_rows(world):
    world.write("events.csv", rows_of(f"u1,i,{MAY}"))
    world.ingest(spec_of())
    world.write("events.csv", rows_of(f"u1,i,{MAY}", f"u2,i,{MAY}"))
    assert world.ingest(spec_of()).events == 1
    assert world.reasons() == {("events.csv", 2): "duplicate"}


def test_a_new_file_without_a_good_row_is_remembered(world):
    world.write("events/1.csv", rows_of(f"u1,i,{MAY}"))
    world.ingest(spec_of("events"))
    world.write("events/2.csv", rows_of("u1,i,soon"))
    assert world.ingest(spec_of("events")).quarantined.total() == 1
    assert world.ingest(spec_of("events")).files == 0
    assert len(world.events()) == 1


def test_the_version_is_that_of_data_and_spec(tmp_path):
    versions = {}
    for name, time, weight in (("a", MAY, 1), ("b", MAY, 1), ("data", MAY + 1, 1), ("spec", MAY, 2)):
        (tmp_path / name).mkdir()
        world = World(tmp_path / name)
        world.write("events.csv", rows_of(f"u,i,{time}"))
        types = {"view": {"positive": True, "weight": weight}}
        versions[name] = world.ingest(spec_of(types=types)).data_version
    assert versions["a"] == versions["b"]
    assert len(set(versions.values())) == 3


@pytest.mark.parametrize("age", [0, 3, 7, 8, 700])
def test_shift_is_whole_weeks_fixed_at_the_first_ingest(world, age):
    last = int(NOW.timestamp()) - age * 86_400
    world.write("events/1.csv", rows_of(f"u1,i,{last}", f"u2,i,{last - 100}"))
    report = world.ingest(spec_of("events"), shift_to_now=True)
    times = world.events()["timestamp"]
    assert report.shift_s % WEEK == 0
    assert (times.astype("int64") // 10**6 - report.shift_s).tolist() == [last - 100, last]
    assert pd.Timedelta(0) <= NOW - times.max() < pd.Timedelta(days=7)
    world.write("events/2.csv", rows_of(f"u3,i,{last - 200}", f"u4,i,{last + 20 * 86_400}"))
    later = world.ingest(spec_of("events"), now=NOW + pd.Timedelta(days=9))
    assert later.shift_s == report.shift_s == read_json(world.workspace.ingest / "manifest.json")["shift_s"]
    assert world.events()["user_id"].tolist() == ["u3", "u2", "u1"]
    assert world.reasons() == {("events/2.csv", 3): "timestamp in the future"}  # of the moved clock


# What stops a run, before it writes


def test_a_wrong_spec_stops_before_anything_is_written(world):
    def refused(message, spec, **options):
        with pytest.raises(SpecError, match=message) as caught:
            world.ingest(spec, **options)
        assert "\n" not in str(caught.value)
        assert not world.workspace.root.exists()

    refused("no file matches 'events.csv'", spec_of())
    world.write("events.csv", rows_of(f"u,i,{MAY}"))
    refused(r"events.csv: no column \['kind'\]", spec_of(type="kind"))
    refused("no file matches 'items'", spec_of(items=ITEMS))
    world.write("items/1.csv", "id,tags\n1,2\n")
    refused(r"1.csv: no column \['name', 'price', 'from'\]", spec_of(items=ITEMS))
    world.write("events.csv", rows_of("u,i,soon"))
    refused("no usable event", spec_of())
    world.write("events.csv", rows_of())
    refused("no usable event", spec_of())
    world.write("events.csv", "")
    refused("the file is empty", spec_of())
    world.write("events.log", "")
    refused("unknown file ending", spec_of("events.log"))


def test_a_bad_later_file_leaves_all_as_it_was(world):
    world.write("events/1.csv", rows_of(f"u,i,{MAY}"))
    world.ingest(spec_of("events"))
    before = world.bytes()
    world.write("events/2.csv", rows_of(f"u,{MAY}", header="user,time"))
    with pytest.raises(SpecError, match="no column"):
        world.ingest(spec_of("events"))
    assert world.bytes() == before


def test_another_spec_needs_another_folder(world):
    world.write("events.csv", rows_of(f"u,i,{MAY}"))
    world.ingest(spec_of())
    before = world.bytes()
    with pytest.raises(SpecError, match="another dataset.toml"):
        world.ingest(spec_of(types={"view": {"positive": True}}))
    assert world.bytes() == before


def test_events_of_an_empty_workspace(world):
    with pytest.raises(MissingStage, match="funnel ingest"):
        read_events(world.workspace)


# Killed

KILLED = """
import os, signal, sys
from pathlib import Path
import pandas as pd
from feature_repo import workspace as w
from feature_repo.dataset import DatasetSpec
from pipelines.ingest import ingest

data, spec, now = Path(sys.argv[1]), DatasetSpec.model_validate_json(sys.argv[2]), pd.Timestamp(sys.argv[3])
replace, calls = os.replace, 0

def dying(source, target):
    global calls
    calls += 1
    if calls == point and how == "half written":
        os.truncate(source, os.path.getsize(source) // 2)
    if calls == point and how == "written":
        replace(source, target)
    if calls == point:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)

w.os.replace = dying
for home in sys.argv[4:]:
    point, how = Path(home).name.split("-")
    point = int(point)
    if os.fork() == 0:  # a process of its own for each death
        ingest(spec, data, w.Workspace(Path(home)), now=now, shift_to_now=True)
        os._exit(0)
    _, status = os.wait()
    assert os.WIFSIGNALED(status), home
"""


@pytest.mark.parametrize("runs_before", [0, 1])
def test_a_killed_run_leaves_no_trace(world, runs_before, tmp_path):
    users = {"path": "users.csv", "key": "id", "attributes": {"age": "numeric"}}
    spec = spec_of("events", users=users)
    world.write("users.csv", "id,age\nu1,3\nu2,x\n")
    world.write("events/1.csv", rows_of(f"u1,i,{MAY}", "u1,i,", f"u2,i,{MAY - 40 * 86_400}"))
    if runs_before:
        world.ingest(spec, shift_to_now=True)
        world.write("events/2.csv", rows_of(f"u3,i,{MAY - 10}", f"u2,i,{MAY - 40 * 86_400}"))
    writes = 8 if runs_before == 0 else 7
    homes = [tmp_path / f"{point}-{how}" for point in range(1, writes + 1) for how in ("half written", "written")]
    for home in homes[:-1]:  # the last write makes the run count
        if runs_before:
            shutil.copytree(world.workspace.root, home)
    world.ingest(spec, shift_to_now=True)
    expected = world.bytes()
    # Enough to be killed at each write; one more point would not be reached.
    arguments = [sys.executable, "-c", KILLED, world.folder, spec.model_dump_json(), NOW.isoformat(), *homes[:-1]]
    done = subprocess.run([str(a) for a in arguments], capture_output=True, text=True, cwd=os.getcwd(), timeout=120)
    assert done.returncode == 0, done.stderr
    for home in homes[:-1]:
        killed = World.__new__(World)
        killed.folder, killed.workspace = world.folder, Workspace(home)
        assert killed.bytes() != expected, home
        if runs_before:
            assert len(killed.events()) == 2, home
        else:
            with pytest.raises(MissingStage):
                killed.events()
        killed.ingest(spec, shift_to_now=True)
        assert killed.bytes() == expected, home


def test_a_run_killed_before_more_files_came_leaves_no_trace(world, tmp_path):
    world.write("events/1.csv", rows_of(f"u1,i,{MAY}"))
    spec = spec_of("events")
    world.ingest(spec)
    os.unlink(world.workspace.ingest / "manifest.json")
    world.write("events/2.csv", rows_of(f"u2,i,{MAY}"))
    world.ingest(spec)
    other = World.__new__(World)
    other.folder, other.workspace = world.folder, Workspace(tmp_path / "other")
    other.ingest(spec)
    assert world.bytes() == other.bytes()


# The layouts that ship


def test_movielens_1m(world):
    world.write("ratings.dat", f"1::1193::5::{978300760}\n1::661::3::978302109\n2::1193::4::978298413\n")
    world.write("users.dat", "1::F::1::10::48067\n2::M::56::16::70072\n")
    movies = '1193::Misérables, Les (1995)::Drama|Musical\n661::James and the "Giant" Peach (1996)::Animation\n'
    world.write("movies.dat", movies.encode("iso-8859-1"))
    report = world.ingest(load_spec(SPECS / "movielens-1m.toml"))
    assert (report.events, report.users, report.items, report.quarantined.total()) == (3, 2, 2, 0)
    assert world.events()["type"].tolist() == ["like", "like", "rate"]
    items = pq.read_table(world.workspace.ingest / "items.parquet").to_pandas()
    assert items["title"].tolist() == ["Misérables, Les (1995)", 'James and the "Giant" Peach (1996)']
    assert list(items["genres"][0]) == ["Drama", "Musical"]


def test_movielens_latest(world):
    world.write("ratings.csv", "userId,movieId,rating,timestamp\r\n1,1,4.0,964982703\r\n1,3,0.5,964981247\r\n")
    world.write(
        "movies.csv", 'movieId,title,genres\r\n1,"American President, The (1995)",Comedy|Romance\r\n3,X,Drama\r\n'
    )
    report = world.ingest(load_spec(SPECS / "movielens-latest-small.toml"))
    assert (report.events, report.items, report.quarantined.total()) == (2, 2, 0)
    assert world.events()["type"].tolist() == ["rate", "like"]


@pytest.mark.parametrize("articles", [False, True])
def test_deskdrop(world, articles):
    agent = '"Mozilla/5.0 (X11; Linux, x86) ""q"""'
    header = "timestamp,eventType,contentId,personId,sessionId,userAgent,userRegion,userCountry"
    lines = ["1465413032,VIEW,-34994,-8845,1264,,,", f"1465412560,COMMENT CREATED,8890,-1032,3621,{agent},SP,BR"]
    world.write("users_interactions.csv", rows_of(*lines, "1465412560,SHARE,8890,-1032,3621,,,", header=header))
    if articles:
        header = "timestamp,eventType,contentId,authorPersonId,authorSessionId,contentType,url,title,text,lang"
        text = '"one\ntwo ' + "x" * 150_000 + '"'
        rows = [
            f"1459193988,CONTENT SHARED,{item},1,1,HTML,u,T {n},{text},en"
            for n, item in enumerate([-34994, 8890, 8890])
        ]
        world.write("shared_articles.csv", rows_of(*rows, header=header))
    report = world.ingest(load_spec(SPECS / "deskdrop.toml"))
    assert world.events()["type"].tolist() == ["comment", "view"]
    assert world.events()["weight"].tolist() == [4.0, 1.0]
    reasons = {("users_interactions.csv", 4): "unknown event type"}
    if articles:
        reasons["shared_articles.csv", 4] = "duplicate item_id: a later row replaces it"
    assert world.reasons() == reasons
    assert report.items == 2 * articles
    assert (world.workspace.spec().items is not None) == articles


@pytest.mark.parametrize("path", sorted(SPECS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_shipped_spec_can_be_read(path):
    assert load_spec(path).name == path.stem
