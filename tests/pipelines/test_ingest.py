"""Ingest: typed tables whatever the format; runs repeat and grow."""

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from feature_repo.events.schema import EVENT_SCHEMA
from feature_repo.files import read_json
from pipelines.ingest.ingested import event_files, read_events
from pipelines.ingest.times import parse_times
from tests.support.ingest_folder import MAY, NOW, TYPED, WEEK, World, rows_of, spec_of


def test_events_are_typed_ordered_and_parted_by_month(world):
    lines = [
        f"u2,i1,{MAY + 40 * 86_400},view,",
        f"u1,i1,{MAY},buy,9.5",
        f" u1 , i2 ,{MAY}.5,view,1",
    ]
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
        months = (
            pq.read_table(name, partitioning=None).to_pandas()["timestamp"].dt.strftime("%Y-%m")
        )
        assert set(months) == {Path(name).parent.name.removeprefix("month=")}
    assert (report.files, report.events, report.total_events, report.quarantined.total()) == (
        1,
        3,
        3,
        0,
    )
    assert read_json(world.workspace.ingest / "report.json") == report.as_dict()
    assert read_events(world.workspace, ["user_id"]).columns.tolist() == [
        "event_id",
        "timestamp",
        "user_id",
    ]


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
        "events.ndjson.gz": lambda path: table.to_json(
            path, orient="records", lines=True, compression="gzip"
        ),
        "folder/part.csv": lambda path: path.write_text(text),
        "text.dat": lambda path: path.write_text(
            text.replace('"i,2"', "i¦2").replace(",", "::").replace("¦", ",")
        ),
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
        (
            "auto",
            [
                "2024-05-01T12:00:00Z",
                "2024-05-01 12:00",
                "2024-05-01T14:00:00+02:00",
                "2024-05-01T12:00:00.000",
            ],
        ),
        ("s", [f"{MAY}"]),
        ("ms", [f"{MAY}000"]),
        ("us", [f"{MAY}000000"]),
        (
            "iso",
            [
                "2024-05-01T12:00:00Z",
                "20240501T120000",
                "2024-05-01T08:00:00-04",
                "2024-05-01T12:00",
            ],
        ),
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
    types = {
        "rate": {"min_value": 0},
        "love": {"min_value": 5, "positive": True},
        "like": {"min_value": 4},
    }
    world.write(
        "events.csv",
        rows_of(
            *(f"u{n},i,{MAY},{v}" for n, v in enumerate([5, 4.5, 3, -1, "", "x"])),
            header="user,item,time,stars",
        ),
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
    world.write(
        "events.csv", rows_of(f"u1,i,{MAY},5", f"u2,i,{MAY},1", header="user,item,time,stars")
    )
    world.ingest(spec_of(value="stars", types={"like": {"min_value": 4, "positive": True}}))
    assert world.events()["user_id"].tolist() == ["u1"]
    assert world.reasons() == {("events.csv", 3): "unknown event type"}


def test_one_column_may_serve_twice(world):
    world.write("events.csv", rows_of(f"u,i,{MAY}"))
    world.ingest(spec_of(value="time", id="time"))
    assert world.events()[["event_id", "value"]].to_numpy().tolist() == [[str(MAY), float(MAY)]]


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
    assert world.reasons() == {
        ("events/2/part.csv", 2): "duplicate",
        ("events/2/part.csv", 4): "duplicate",
    }
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
    for name, time, weight in (
        ("a", MAY, 1),
        ("b", MAY, 1),
        ("data", MAY + 1, 1),
        ("spec", MAY, 2),
    ):
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
    assert (
        later.shift_s
        == report.shift_s
        == read_json(world.workspace.ingest / "manifest.json")["shift_s"]
    )
    assert world.events()["user_id"].tolist() == ["u3", "u2", "u1"]
    assert world.reasons() == {("events/2.csv", 3): "timestamp in the future"}  # of the moved clock
