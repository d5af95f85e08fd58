"""Every value of every offline table against a recount in plain Python, key by key."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from feature_repo import columns as c
from feature_repo.dataset import DatasetSpec
from feature_repo.declarations.built_in import AFFINITY_LENGTH
from feature_repo.declarations.declared import Declared
from feature_repo.declarations.reading import read_declared
from pipelines.features.spark import spark_session
from pipelines.features.spark_job import build_features
from pipelines.workflow.feature_tables import ONE_PARTITION

DAY = 86_400_000_000
HEARTBEAT_DAYS = 84
WINDOWS = {"1d": 1, "7d": 7, "30d": 30, "all": None}
START = 11_000 * DAY
Event = dict[str, Any]
Rows = dict[tuple[str, int], dict[str, Any]]
"""Rows of one table by key and event_timestamp (microseconds)."""

SPEC = DatasetSpec.model_validate(
    {
        "name": "small",
        "events": {
            "path": "events.csv",
            "user": "u",
            "item": "i",
            "timestamp": "t",
            "type": "k",
            "value": "v",
            "types": {
                "view": {},
                "like": {"positive": True, "weight": 0.5},
                "buy": {"positive": True, "weight": 3},
            },
        },
        "users": {
            "path": "users.csv",
            "key": "u",
            "attributes": {"country": "categorical", "age": "numeric"},
        },
        "items": {
            "path": "items.csv",
            "key": "i",
            "attributes": {"title": "text", "weight": "multi_categorical"},
            "category": "weight",
            "available_from": "from",
        },
    }
)
# The category is called "weight" on purpose: attributes may share a name with a column of the event
# log.
KEYS = {
    "user_activity": c.USER,
    "item_activity": c.ITEM,
    "user_affinity": c.USER,
    "user_history": c.USER,
    "user_seen": c.USER,
    "user_profile": c.USER,
    "item_profile": c.ITEM,
    "user_recent": c.USER,
}
ITEMS: dict[str, list[str | None] | None] = {
    **{f"i{k}": [f"g{(k * 7 + j) % 26:02d}" for j in range(k % 7)] for k in range(24)},
    "i3": None,
    "i4": ["g01", None, "g01"],
    "i99": ["g00"],
}
USERS = {f"u{k}": ("nl", None if k % 3 else k + 0.5) for k in range(28)} | {"u99": (None, math.nan)}


def random_log(seed: int) -> list[Event]:
    """30 users and 25 items: 50 busy days, 180 silent ones, 15 more days.

    Ties, repeats and missing values.
    """
    draw = random.Random(seed)
    log: list[Event] = []
    for n in range(700):
        day = draw.randrange(50) if n < 600 else 230 + draw.randrange(15) if n < 699 else 245
        kind = draw.choice(["view", "view", "like", "buy"])
        log.append(
            {
                c.EVENT_ID: f"e{n:04d}",
                c.USER: f"u{min(draw.randrange(30), draw.randrange(60))}",
                c.ITEM: f"i{min(draw.randrange(25), draw.randrange(40))}",
                # Few moments in a day, so that events coincide, midnight among them.
                c.TIMESTAMP: START
                + day * DAY
                + draw.choice([0, 1, 3_600_000_000, 50_000_000_001, DAY - 1]),
                c.TYPE: kind,
                c.VALUE: None if draw.random() < 0.4 else draw.randrange(-300, 1000) / 100,
                c.WEIGHT: SPEC.events.types[kind].weight,
                c.POSITIVE: kind != "view",
            }
        )
    return log


def declared(spec: DatasetSpec) -> Declared:
    return read_declared(None, spec, Path("features"))


def write_input(folder: Path, log: list[Event]) -> Path:
    """Write the tables that ingest leaves."""
    moment = pa.timestamp("us", "UTC")
    frame = pd.DataFrame(log)
    schema = pa.schema(
        [(name, pa.string()) for name in (c.EVENT_ID, c.USER, c.ITEM)]
        + [
            (c.TIMESTAMP, moment),
            (c.TYPE, pa.string()),
            (c.VALUE, pa.float64()),
            (c.WEIGHT, pa.float64()),
        ]
        + [(c.POSITIVE, pa.bool_())]
    )
    for month, part in frame.groupby(
        pd.to_datetime(frame[c.TIMESTAMP], unit="us").dt.strftime("%Y-%m")
    ):
        path = folder / "events" / f"{c.MONTH}={month}" / "batch-1.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(part.astype(object).to_dict("records"), schema), path)
    users = [
        {c.USER: user, "country": country, "age": age} for user, (country, age) in USERS.items()
    ]
    pq.write_table(pa.Table.from_pylist(users), folder / "users.parquet")
    items = {
        c.ITEM: pa.array(list(ITEMS)),
        "title": pa.array([f"Title {item}" for item in ITEMS]),
        "weight": pa.array(list(ITEMS.values()), pa.list_(pa.string())),
        c.AVAILABLE_FROM: pa.array([START + k for k in range(len(ITEMS))], moment),
    }
    pq.write_table(pa.table(items), folder / "items.parquet")
    return folder


def read(out: Path, table: str) -> Rows:
    """Read a table, and check that key and event_timestamp are unique and that there is no NaN."""
    data = pq.read_table(out / table)
    assert data.schema.field(c.EVENT_TIMESTAMP).type == pa.timestamp("us", "UTC")
    stamps = data[c.EVENT_TIMESTAMP].cast(pa.int64()).to_pylist()
    state = f"{table}_state"
    rows = {
        (row[KEYS[table]], stamp): {
            k: v for k, v in row.items() if k not in (KEYS[table], c.EVENT_TIMESTAMP, state)
        }
        for row, stamp in zip(data.to_pylist(), stamps, strict=True)
    }
    assert len(rows) == data.num_rows
    assert not any(
        isinstance(v, float) and math.isnan(v) for row in rows.values() for v in row.values()
    )
    return rows


@pytest.fixture(scope="module")
def log() -> list[Event]:
    return random_log(7)


@pytest.fixture(scope="module")
def ingest(log: list[Event], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_input(tmp_path_factory.mktemp("ingest"), log)


@pytest.fixture(scope="module")
def single_threaded(ingest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tables built by one thread in one partition, from a list of files in reverse order."""
    work = tmp_path_factory.mktemp("single-threaded")
    files = sorted(
        (str(file.relative_to(ingest)) for file in (ingest / "events").rglob("*.parquet")),
        reverse=True,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FUNNEL_SPARK_MASTER", "local[1]")
        session = spark_session("test-features", work=work, extra=ONE_PARTITION)
    assert session.sparkContext.master == "local[1]"
    build_features(session, SPEC, ingest, work / "out", event_files=files, declared=declared(SPEC))
    session.stop()
    return work / "out"


@pytest.fixture(scope="module")
def spark(
    single_threaded: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SparkSession]:
    assert single_threaded.is_dir()  # its session is over: a process has one at a time
    session = spark_session("test-features", "local[2]", tmp_path_factory.mktemp("work"))
    yield session
    session.stop()


@pytest.fixture(scope="module")
def out(
    spark: SparkSession, ingest: Path, log: list[Event], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("features")
    lines: list[str] = []
    rows = build_features(
        spark, SPEC, ingest, folder, progress=lines.append, declared=declared(SPEC)
    )
    assert rows.pop("stream_state") == len(by_key(log, c.USER))
    assert rows == {table: len(read(folder, table)) for table in KEYS}
    assert sorted(line.split(":")[0] for line in lines) == sorted([*KEYS, "stream_state"])
    return folder


def by_key(log: list[Event], key: str) -> dict[str, list[Event]]:
    """Return each key's events in order."""
    groups: dict[str, list[Event]] = defaultdict(list)
    for event in sorted(log, key=lambda e: (e[c.TIMESTAMP], e[c.EVENT_ID])):
        groups[event[key]].append(event)
    return groups


def last_midnight(log: list[Event]) -> int:
    return int(max(e[c.TIMESTAMP] for e in log)) // DAY + 1


def daily(
    log: list[Event], key: str, value: Callable[[list[Event], int], dict[str, Any] | None]
) -> Rows:
    """Recount a daily table.

    Look at every midnight of every key, and keep changes, heartbeats and the end.
    """
    last, rows = last_midnight(log), {}
    for owner, events in by_key(log, key).items():
        held, since = None, 0
        for midnight in range(events[0][c.TIMESTAMP] // DAY + 1, last + 1):
            now = value([e for e in events if e[c.TIMESTAMP] < midnight * DAY], midnight)
            if now is not None and (
                now != held or midnight - since == HEARTBEAT_DAYS or midnight == last
            ):
                rows[owner, stamp(log, midnight)] = now
                held, since = now, midnight
    return rows


def stamp(log: list[Event], midnight: int) -> int:
    return (
        max(e[c.TIMESTAMP] for e in log) + 1_000_000
        if midnight == last_midnight(log)
        else midnight * DAY
    )


def activity(other: str, others: str) -> Callable[[list[Event], int], dict[str, Any]]:
    def value(past: list[Event], midnight: int) -> dict[str, Any]:
        row: dict[str, Any] = {}
        for window, days in WINDOWS.items():
            inside = [e for e in past if days is None or e[c.TIMESTAMP] >= (midnight - days) * DAY]
            row[f"events_{window}"] = len(inside)
            for kind in SPEC.event_types:
                mine = [e for e in inside if e[c.TYPE] == kind]
                row[f"{kind}_count_{window}"] = len(mine)
                row[f"{kind}_{others}_{window}"] = len({e[other] for e in mine})
            units = [round(e[c.VALUE] * 1_000_000) for e in inside if e[c.VALUE] is not None]
            row[f"value_mean_{window}"] = sum(units) / (len(units) * 1_000_000) if units else None
        row[c.FIRST_EVENT_AT] = past[0][c.TIMESTAMP] // 1_000_000
        row[c.LAST_EVENT_AT] = past[-1][c.TIMESTAMP] // 1_000_000
        if other == c.ITEM:
            row["active_days"] = len({e[c.TIMESTAMP] // DAY for e in past})
        return row

    return value


def test_user_activity_equals_a_recount(out: Path, log: list[Event]) -> None:
    assert read(out, "user_activity") == daily(log, c.USER, activity(c.ITEM, "items"))


def test_item_activity_equals_a_recount(out: Path, log: list[Event]) -> None:
    rows = read(out, "item_activity")
    for row in rows.values():
        trend = math.log((row["events_7d"] / 7 + 0.1) / (row["events_30d"] / 30 + 0.1))
        assert row.pop(c.TREND) == pytest.approx(trend, rel=1e-12, abs=1e-12)
    assert rows == daily(log, c.ITEM, activity(c.USER, "users"))


def test_user_affinity_equals_a_recount(out: Path, log: list[Event]) -> None:
    # A day with positive events makes a row even if no share moves: the count stands for that here.
    def value(past: list[Event], _midnight: int) -> dict[str, Any] | None:
        liked = [e for e in past if e[c.POSITIVE]]
        weights: dict[str, float] = defaultdict(float)
        for event in liked:
            for label in {label for label in ITEMS.get(event[c.ITEM]) or [] if label}:
                weights[label] += event[c.WEIGHT]
        ranked = sorted(weights, key=lambda label: (-weights[label], label))[:AFFINITY_LENGTH]
        shares = [weights[label] / sum(weights.values()) for label in ranked]
        return {c.CATEGORIES: ranked, c.CATEGORY_SHARES: shares, "n": len(liked)} if liked else None

    expected, rows = daily(log, c.USER, value), read(out, "user_affinity")
    assert rows.keys() == expected.keys()
    for at, row in rows.items():
        assert row[c.CATEGORIES] == expected[at][c.CATEGORIES]
        assert row[c.CATEGORY_SHARES] == pytest.approx(expected[at][c.CATEGORY_SHARES], rel=1e-6)
    assert max(len(row[c.CATEGORIES]) for row in rows.values()) == AFFINITY_LENGTH
    assert min(len(row[c.CATEGORIES]) for row in rows.values()) == 0


def latest(events: list[Event], length: int) -> dict[str, int]:
    """Return the last ``length`` distinct items and their last event's second, oldest first."""
    times: dict[str, int] = {}
    for event in reversed(events):
        times.setdefault(event[c.ITEM], event[c.TIMESTAMP] // 1_000_000)
    return dict(list(reversed(times.items()))[-length:])


def test_user_history_equals_a_recount(out: Path, log: list[Event]) -> None:
    expected: Rows = {}
    for user, events in by_key([e for e in log if e[c.POSITIVE]], c.USER).items():
        for moment in {e[c.TIMESTAMP] for e in events}:
            recent = latest([e for e in events if e[c.TIMESTAMP] <= moment], c.HISTORY_LENGTH)
            expected[user, moment] = {
                c.HISTORY_ITEMS: list(recent),
                c.HISTORY_TIMES: list(recent.values()),
            }
    assert read(out, "user_history") == expected


def test_user_seen_equals_a_recount(out: Path, log: list[Event]) -> None:
    expected: Rows = {}
    for user, events in by_key(log, c.USER).items():
        for midnight in {e[c.TIMESTAMP] // DAY + 1 for e in events}:
            past = [e for e in events if e[c.TIMESTAMP] < midnight * DAY]
            expected[user, stamp(log, midnight)] = {
                c.seen(kind): list(latest([e for e in past if e[c.TYPE] == kind], 2000))
                for kind in SPEC.event_types
            }
    assert read(out, "user_seen") == expected


def test_profiles_hold_every_key_from_the_day_before_the_data(out: Path, log: list[Event]) -> None:
    before = (min(e[c.TIMESTAMP] for e in log) // DAY - 1) * DAY
    names = USERS.keys() | {e[c.USER] for e in log}
    users = {u: USERS.get(u, (None, None)) for u in names}
    assert read(out, "user_profile") == {
        (u, before): {"country": country, "age": None if age is None or math.isnan(age) else age}
        for u, (country, age) in users.items()
    }
    rows = read(out, "item_profile")
    assert rows.keys() == {(i, before) for i in ITEMS.keys() | {e[c.ITEM] for e in log}}
    for (item, _), row in rows.items():
        known = item in ITEMS
        assert row["title"] == (f"Title {item}" if known else None)
        assert row["weight"] == ITEMS.get(item)
        start = (
            pd.Timestamp(START + list(ITEMS).index(item), unit="us", tz="UTC") if known else None
        )
        assert row[c.AVAILABLE_FROM] == start
    assert len(users) > len(USERS) and len(rows) > len(
        ITEMS
    )  # both know keys that the files do not


@pytest.mark.parametrize("table", ["user_activity", "item_activity", "user_affinity"])
def test_no_gap_outlives_the_ttl(out: Path, log: list[Event], table: str) -> None:
    stamps: dict[str, list[int]] = defaultdict(list)
    for key, at in sorted(read(out, table)):
        stamps[key].append(at)
    gaps = [b - a for times in stamps.values() for a, b in zip(times, times[1:], strict=False)]
    assert max(gaps) == HEARTBEAT_DAYS * DAY  # the silence is longer: heartbeats were needed
    end = max(e[c.TIMESTAMP] for e in log) + 1_000_000
    assert {times[-1] for times in stamps.values()} == {end}


def test_no_row_is_later_than_the_end_of_the_log(out: Path, log: list[Event]) -> None:
    """Windows that forget later do so by the state: such a row would hide what a stream adds."""
    end = max(e[c.TIMESTAMP] for e in log) + 1_000_000
    assert max(at for table in KEYS for _, at in read(out, table)) == end


def test_no_row_sees_its_future(
    spark: SparkSession, out: Path, log: list[Event], tmp_path_factory: pytest.TempPathFactory
) -> None:
    end = max(e[c.TIMESTAMP] for e in log) + 1_000_000
    late = log[0] | {
        c.EVENT_ID: "late",
        c.TIMESTAMP: end + 3 * DAY,
        c.TYPE: "buy",
        c.POSITIVE: True,
    }
    folder = write_input(tmp_path_factory.mktemp("longer"), [*log, late])
    build_features(spark, SPEC, folder, folder / "features", declared=declared(SPEC))
    for table in KEYS:
        before, after = read(out, table), read(folder / "features", table)
        assert {at: row for at, row in after.items() if at[1] < end} == {
            at: row for at, row in before.items() if at[1] < end
        }


def test_one_thread_and_a_list_of_files_give_the_same_tables(
    single_threaded: Path, out: Path
) -> None:
    for table in KEYS:
        assert read(single_threaded, table) == read(out, table)


def test_a_log_without_values_users_or_items(spark: SparkSession, tmp_path: Path) -> None:
    plain = {"name": "plain", "events": {"path": "x", "user": "u", "item": "i", "timestamp": "t"}}
    schema = pa.schema(
        [
            (c.TIMESTAMP, pa.timestamp("us", "UTC")),
            (c.WEIGHT, pa.float64()),
            (c.POSITIVE, pa.bool_()),
        ]
    )
    ids = {name: pa.array(["1", "2"]) for name in (c.EVENT_ID, c.ITEM)} | {
        c.USER: pa.array(["a", "a"])
    }
    # The first event lies before 1970, the last one second before midnight.
    times = pa.array([-1, DAY - 1_000_000], schema.field(c.TIMESTAMP).type)
    event = {
        c.TIMESTAMP: times,
        c.TYPE: ["interaction"] * 2,
        c.WEIGHT: [1.0, 1.0],
        c.POSITIVE: [True, True],
    }
    (tmp_path / "events").mkdir()
    pq.write_table(pa.table(ids | event), tmp_path / "events" / "part.parquet")
    spec = DatasetSpec.model_validate(plain)
    rows = build_features(spark, spec, tmp_path, tmp_path / "out", declared=declared(spec))
    streaming = {"stream_state": 1, "user_recent": 5}
    assert rows == {
        "user_activity": 2,
        "item_activity": 3,
        "user_history": 2,
        "user_seen": 2,
        **streaming,
    }
    users = read(tmp_path / "out", "user_activity")
    assert {at: (row["events_1d"], row["events_all"]) for at, row in users.items()} == {
        ("a", 0): (1, 1),
        ("a", DAY): (1, 2),
    }
    assert users["a", 0][c.FIRST_EVENT_AT] == -1
    assert not any(name.startswith("value_mean") for name in users["a", 0])
    assert read(tmp_path / "out", "user_seen")["a", DAY] == {"seen_interaction": ["1", "2"]}
    with pytest.raises(ValueError, match="no event"):
        build_features(
            spark, spec, tmp_path, tmp_path / "out", event_files=[], declared=declared(spec)
        )


def test_sums_beyond_64_bits_are_exact(spark: SparkSession, tmp_path: Path) -> None:
    """Three honest prices of a small currency, and a value that an earlier ingest accepted."""
    raw = {"path": "x", "user": "u", "item": "i", "timestamp": "t", "value": "v"}
    spec = DatasetSpec.model_validate({"name": "large", "events": raw})
    values = [6e12, 6e12, 6e12, 1e308, float("nan"), None, -1e15]
    size = len(values)
    columns = {name: [str(n) for n in range(size)] for name in (c.EVENT_ID, c.USER)}
    columns |= {c.ITEM: ["p"] * 6 + ["q"], c.TYPE: ["interaction"] * size}
    columns |= {c.WEIGHT: [1.0] * size, c.POSITIVE: [True] * size}
    table = pa.table(columns | {c.VALUE: pa.array(values, pa.float64())})
    times = pa.array([n * 1_000_000 for n in range(size)], pa.timestamp("us", "UTC"))
    (tmp_path / "events").mkdir()
    pq.write_table(table.append_column(c.TIMESTAMP, times), tmp_path / "events" / "part.parquet")
    build_features(spark, spec, tmp_path, tmp_path / "out", declared=declared(spec))
    rows = read(tmp_path / "out", "item_activity")
    means = {item: row["value_mean_all"] for (item, _), row in rows.items()}
    assert means == {"p": 6e12, "q": -1e15}
