"""A torn file of the archive stops nobody: it is set aside, and made anew from the event log."""

import json
from datetime import UTC, datetime

import pytest

from feature_repo.events.log_names import LOG
from feature_repo.events.log_position import event_micros, position_key
from feature_repo.parquet_files import files_set_aside
from feature_repo.stores.embedded_redis import release as stop_redis
from feature_repo.stores.feature_store import redis_client
from feature_repo.workspace import Workspace
from pipelines.streaming.offline import (
    EVENT_SCHEMA,
    MERGE,
    Part,
    archive,
    arrival,
    merge,
    parts,
    read_archive,
    write_part,
)
from pipelines.streaming.status import BatchStatus
from serving.erasure import Erasure
from serving.event_log.redis_stream import RedisStreamLog
from tests.support.tiny_release import SPEC

TORN = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-30]),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
}
BATCHES = 5


@pytest.fixture
def workspace(tmp_path):
    """A working folder whose log has 5 batches of events, as the archive has after them."""
    workspace = Workspace(tmp_path / "w")
    workspace.ingest.mkdir(parents=True)
    (workspace.ingest / "dataset.json").write_text(SPEC.model_dump_json())
    log, client = RedisStreamLog(workspace), redis_client(workspace)
    for batch in range(BATCHES):
        log.append([event(batch, n) for n in range(4)])
        client.xadd(LOG, {"event": "no event"})
    entries = [(key.decode(), fields[b"event"]) for key, fields in client.xrange(LOG)]
    for batch in range(BATCHES):
        rows = [row(*entry) for entry in entries[5 * batch : 5 * batch + 4]]
        write_part(archive(workspace), Part(1, batch, batch), rows, EVENT_SCHEMA)
    BatchStatus(position=entries[-1][0]).write(client)
    yield workspace
    stop_redis(workspace.redis)


def event(batch, n):
    return {
        "event_id": f"{batch}/{n}",
        "user_id": f"u{n}",
        "item_id": "i1",
        "type": "buy",
        "timestamp": 1_700_000_000.5 + batch,
        "value": 1.5,
        "request_id": "r1",
    }


def row(position, payload):
    event = json.loads(payload)
    micros = event_micros(event["timestamp"], position)
    happened = datetime.fromtimestamp(micros / 1e6, UTC)
    return event | {
        "position": position,
        "timestamp": happened,
        "accepted_at": arrival(position),
    }


def part_file(workspace, batch):
    return archive(workspace) / Part(1, batch, batch).name


@pytest.mark.parametrize("how", TORN)
@pytest.mark.parametrize("torn", [[0], [2], [4], [1, 2], [3, 4], list(range(5))])
def test_it_is_made_anew_from_the_log(workspace, torn, how, caplog):
    before = read_archive(workspace)
    for batch in torn:
        TORN[how](part_file(workspace, batch))
    redis_client(workspace).xadd(LOG, {"event": json.dumps(event(9, 9))})  # no batch has it yet
    assert read_archive(workspace).equals(before)
    assert str(part_file(workspace, torn[0])) in caplog.text
    asides = files_set_aside(archive(workspace))
    # The log does not say that it never had anything before its oldest entry.
    assert len(asides) == (0 in torn)
    assert read_archive(workspace, "1-0").equals(before)
    assert len(files_set_aside(archive(workspace))) == len(asides)


def test_what_the_log_has_dropped_is_said_to_be_lost(workspace, caplog):
    before = read_archive(workspace)
    last_dropped = before["position"][9].as_py()
    client = redis_client(workspace)
    milliseconds, number = position_key(last_dropped)
    client.xtrim(LOG, minid=f"{milliseconds}-{number + 1}", approximate=False)
    TORN["empty"](part_file(workspace, 2))
    after = read_archive(workspace)
    assert after["event_id"].to_pylist() == [
        name for name in before["event_id"].to_pylist() if name not in ("2/0", "2/1")
    ]
    assert "lost" in caplog.text and len(files_set_aside(archive(workspace))) == 1


def test_an_erased_user_does_not_return(workspace):
    TORN["cut"](part_file(workspace, 2))
    Erasure(workspace).erased.add("u1")
    assert "2/1" not in read_archive(workspace)["event_id"].to_pylist()


def test_without_redis_the_other_files_are_read(workspace, monkeypatch):
    TORN["cut"](part_file(workspace, 2))
    monkeypatch.setenv("FUNNEL_PROFILE", "cluster")
    monkeypatch.setenv("FUNNEL_REDIS", "127.0.0.1:1")
    assert len(read_archive(workspace)) == 4 * (BATCHES - 1)
    assert len(files_set_aside(archive(workspace))) == 1


def test_a_merge_goes_around_a_torn_file(workspace):
    folder = archive(workspace)
    for batch in range(BATCHES, MERGE):
        write_part(folder, Part(1, batch, batch), [{"position": f"{batch}-0"}], EVENT_SCHEMA)
    TORN["empty"](part_file(workspace, 3))
    assert merge(folder, EVENT_SCHEMA, 10**9, 1) == 0
    assert len(files_set_aside(folder)) == 1 and len(parts(folder)) == MERGE - 1


def test_files_that_are_older_by_their_statistics_are_not_read(workspace):
    newest = read_archive(workspace)["position"].to_pylist()
    for batch in range(BATCHES - 1):  # their content would be an error, their index is whole
        path = part_file(workspace, batch)
        content = path.read_bytes()
        path.write_bytes(bytes(64) + content[64:])
    assert read_archive(workspace, newest[-4])["position"].to_pylist() == newest[-3:]
    assert not files_set_aside(archive(workspace))
