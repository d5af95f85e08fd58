"""The reading end of the log.

Files come through a real Spark stream, Kafka's records as its connector would give them.
"""

import itertools
import json
import time
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from feature_repo.events.log_folder import LogFolder
from feature_repo.events.log_position import position_key
from feature_repo.stores.embedded_redis import release as stop_redis
from feature_repo.workspace import Workspace
from pipelines.features.spark import spark_session
from pipelines.streaming.file_source import FileLogReader
from pipelines.streaming.logs import ConnectorMissing, LogReading, kafka_rows, log_entries
from serving.event_log.file_log import FileLog
from serving.event_log.port import Appended

TYPES, SHARDS = ["view", "like"], [3, 8]
numbers = itertools.count()


def event(user="u1", item="i1", kind="view"):
    fields = {"event_id": f"e{next(numbers)}", "user_id": user, "item_id": item, "type": kind}
    return fields | {"timestamp": time.time() - 10}


@pytest.fixture(scope="module")
def spark(tmp_path_factory):
    session = spark_session("test-logs", "local[1]", tmp_path_factory.mktemp("spark"))
    yield session
    session.stop()


@pytest.fixture
def log(tmp_path, monkeypatch):
    workspace, folder = Workspace(tmp_path / "w"), tmp_path / "log with a space"
    monkeypatch.setenv("FUNNEL_EVENT_LOG", f"files:{folder}")
    yield SimpleNamespace(workspace=workspace, folder=folder, log=FileLog(workspace, folder))
    stop_redis(workspace.redis)


def taken(spark, log, checkpoint, reading):
    """Return the rows of each batch that a query with this checkpoint finds now."""
    batches = []
    rows = log_entries(spark, log.workspace, reading)
    writer = rows.writeStream.foreachBatch(lambda frame, _: batches.append(frame.collect()))
    query = writer.option("checkpointLocation", str(checkpoint)).trigger(availableNow=True).start()
    query.awaitTermination(120)
    return [batch for batch in batches if batch]


def users(rows):
    return [
        (row["key"], row["event_id"], row["item"], row["kind"])
        for row in rows
        if row["key"].startswith("u")
    ]


def expected(events):
    return [
        ("u" + e["user_id"], e["event_id"], e["item_id"], TYPES.index(e["type"])) for e in events
    ]


def test_a_stream_takes_what_was_appended_and_then_what_is_new(spark, log, tmp_path):
    reading, checkpoint = LogReading(TYPES, SHARDS, items=True), tmp_path / "checkpoint"
    first = [event("u1", "i1") | {"value": 2.5, "request_id": "r1"}, event("ключ", "i2", "like")]
    log.log.append(first)
    log.log.append([bad := event(kind="stare")])
    with LogFolder(log.folder).writing() as writer:
        writer.write(["no event at all", '{"user_id": 7}'])
    (batch,) = taken(spark, log, checkpoint, reading)
    assert users(batch) == expected(first)
    poison = [row for row in batch if row["key"] == "p"]
    reasons = [row["poison"].split("\n")[0] for row in poison]
    assert (
        reasons[0] == "unknown type 'stare'"
        and json.loads(poison[0]["poison"].split("\n")[1]) == bad
    )
    assert reasons[1].startswith("not JSON") and "no event at all" in poison[1]["poison"]
    assert reasons[2] == "user_id is not a string"
    check_rows(batch, first[0], log)
    second = [event("u3") for _ in range(3)]
    log.log.append(second)
    (batch,) = taken(spark, log, checkpoint, reading)
    assert users(batch) == expected(second)
    assert taken(spark, log, checkpoint, reading) == []


def check_rows(batch, first, log):
    """A row is in its key's shard.

    It has the position that the writer gave and the event as it was accepted.
    """
    mine = next(row for row in batch if row["event_id"] == first["event_id"])
    (entry, *_) = LogFolder(log.folder).after(0)[0].read()
    assert (mine["position"], first) == (entry[0], json.loads(entry[1]))
    assert (mine["key"], mine["item"], mine["kind"]) == ("uu1", "i1", 0)
    assert (mine["value"], mine["request_id"], mine["poison"]) == (2.5, "r1", None)
    assert mine["micros"] == round(first["timestamp"] * 1e6)
    assert mine["event_time"].replace(tzinfo=UTC).timestamp() == pytest.approx(
        first["timestamp"], abs=1e-5
    )
    assert {row["shard"] for row in batch} <= set(SHARDS)
    assert sum(row["key"] == "ii1" for row in batch) == 1
    places = [position_key(row["position"]) for row in batch]
    assert places == sorted(places)


def reader_of(log, start="0-0", most=5):
    reading = LogReading(TYPES, SHARDS, start=start, max_entries=most)
    return FileLogReader({"folder": str(log.folder), "reading": json.dumps(reading._asdict())})


def read(reader, start, end):
    batches = (batch for part in reader.partitions(start, end) for batch in reader.read(part))
    return [
        row["event_id"]
        for batch in batches
        for row in batch.to_pylist()
        if row["key"].startswith("u")
    ]


def test_batches_are_bounded_whole_files_and_the_same_when_read_again(log):
    reader = reader_of(log)
    start = reader.initialOffset()
    assert reader.latestOffset(start, None) == start  # nobody has written yet
    ids = []
    for count in (2, 2, 2, 7, 1):
        events = [event() for _ in range(count)]
        ids += [e["event_id"] for e in events]
        log.log.append(events)
    found = []
    while (end := reader.latestOffset(start, None)) != start:
        found.append(read(reader, start, end))
        if len(found) == 1:
            log.log.append([event()])  # while the first batch is being worked on
        assert read(reader_of(log), start, end) == found[-1]
        start = end
    assert [len(batch) for batch in found] == [4, 2, 7, 2]
    assert [i for batch in found for i in batch][:-1] == ids


def test_a_new_checkpoint_starts_after_a_position_even_inside_a_file(log):
    assert log.log.append(events := [event() for _ in range(3)]) == Appended(3)
    (file,) = LogFolder(log.folder).after(0)
    reader = reader_of(log, start=f"{file.milliseconds}-0")
    start = reader.initialOffset()
    assert read(reader, start, reader.latestOffset(start, None)) == [
        e["event_id"] for e in events[1:]
    ]


@pytest.mark.faults
def test_kafkas_records_are_the_same_rows(spark):
    at = datetime(2026, 1, 2, 3, 4, 5, 678_000, tzinfo=UTC)
    place = int(at.timestamp() * 1_000)
    e = event() | {"timestamp": at.timestamp() - 1}
    values = [json.dumps(e).encode(), b"\xff\xfe", None, json.dumps(event()).encode()]
    records = [
        (bytearray(b"u1"), value and bytearray(value), 10_000 + n, at)
        for n, value in enumerate(values)
    ]
    frame = spark.createDataFrame(
        records, "key binary, value binary, offset long, timestamp timestamp"
    )
    rows = kafka_rows(frame, LogReading(TYPES, SHARDS, items=True)).collect()
    assert [(row["key"], row["position"]) for row in rows] == [
        ("uu1", f"{place}-10000"),
        ("ii1", f"{place}-10000"),
        ("p", f"{place}-10001"),
        ("p", f"{place}-10002"),
        ("uu1", f"{place}-10003"),
        ("ii1", f"{place}-10003"),
    ]
    assert {(row["user"], row["item"]) for row in rows if row["key"] != "p"} == {("u1", "i1")}
    assert rows[0]["micros"] == round(e["timestamp"] * 1e6)
    later = kafka_rows(frame, LogReading(TYPES, SHARDS, start=f"{place}-10002")).collect()
    assert [(row["key"], row["position"]) for row in later] == [("uu1", f"{place}-10003")]


def test_a_spark_without_the_connector_says_how_to_get_it(spark, log, monkeypatch):
    monkeypatch.setenv("FUNNEL_EVENT_LOG", "kafka://127.0.0.1:1/t")
    with pytest.raises(
        ConnectorMissing, match=r"--packages org\.apache\.spark:spark-sql-kafka-0-10_2\.13:4\.3\.0"
    ):
        log_entries(spark, log.workspace, LogReading(TYPES, SHARDS, items=True))
