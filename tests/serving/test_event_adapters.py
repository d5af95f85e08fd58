"""The event log's address, and files as the log, on a real disk and with a real Redis."""

import itertools
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from feature_repo.events.log_folder import LogFolder
from feature_repo.events.log_names import KafkaAddress, log_address
from feature_repo.events.log_position import position_key
from feature_repo.settings import SettingsError
from serving.event_log import file_log
from serving.event_log.file_log import FileLog
from serving.event_log.open import open_log
from serving.event_log.port import Appended
from serving.event_log.redis_stream import RedisStreamLog
from serving.online.features import OnlineStoreUnavailable
from tests.support.event_log import (
    client,
    die,
    event,
    in_a_process_that_is_killed,
    kill_redis,
    overlay,
)

# ---- the address


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, None),
        ("redis", None),
        ("kafka://a:9092/t", KafkaAddress("a:9092", "t")),
        ("kafka://a.b:9092,c:9093/my-topic.1", KafkaAddress("a.b:9092,c:9093", "my-topic.1")),
    ],
)
def test_addresses(monkeypatch, text, expected):
    monkeypatch.delenv("FUNNEL_EVENT_LOG", raising=False)
    if text is not None:
        monkeypatch.setenv("FUNNEL_EVENT_LOG", text)
    assert log_address() == expected


@pytest.mark.parametrize(
    "text", ["kafka://a/t", "kafka://a:1", "kafka://a:1/", "kafka://a:1/t/u", "files:x", "s3://b"]
)
def test_a_bad_address_is_one_error(monkeypatch, text, workspace):
    monkeypatch.setenv("FUNNEL_EVENT_LOG", text)
    with pytest.raises(SettingsError, match="FUNNEL_EVENT_LOG=.*`redis`, `kafka://"):
        open_log(workspace)


def test_the_log_is_what_the_variable_names(monkeypatch, workspace, tmp_path):
    assert isinstance(open_log(workspace), RedisStreamLog)
    monkeypatch.setenv("FUNNEL_EVENT_LOG", f"files:{tmp_path}/log")
    log = open_log(workspace)
    assert isinstance(log, FileLog)
    assert log.append([event()]) == Appended(1)
    assert len(LogFolder(tmp_path / "log").after(0)) == 1


# ---- files


class Files:
    def __init__(self, workspace, folder):
        self.workspace, self.folder = workspace, folder
        self.log = FileLog(workspace, folder)

    def entries(self):
        return [
            (at, json.loads(text))
            for file in LogFolder(self.folder).after(0)
            for at, text in file.read()
        ]

    def ids(self):
        return [entry["event_id"] for _, entry in self.entries()]


@pytest.fixture
def files(workspace, tmp_path):
    with client(workspace) as server:
        server.flushall()
    return Files(workspace, tmp_path / "log")


def test_files_hold_what_was_accepted_and_the_overlay_shows_it(files):
    first, second = event(item="ключ"), event("u2")
    assert files.log.append([first, first, second]) == Appended(2, (1,))
    assert files.log.append([first, third := event(item="i3")]) == Appended(1, (0,))
    assert files.log.append([first]) == Appended(0, (0,))
    assert files.log.append([]) == Appended(0)
    entries = files.entries()
    assert [entry for _, entry in entries] == [first, second, third]
    places = [position_key(at) for at, _ in entries]
    assert places == sorted(set(places))
    assert abs(places[0][0] / 1_000 - time.time()) < 60
    assert overlay(files.workspace, "u1") == [(entries[0][0], "ключ"), (entries[2][0], "i3")]
    assert {path.suffix for path in files.folder.rglob("*") if path.is_file()} == {"", ".jsonl"}
    name = LogFolder(files.folder).after(0)[0].path.name
    assert name.endswith(f"-2-{os.getpid()}.jsonl")


def test_positions_rise_though_the_clock_goes_back(files, monkeypatch):
    files.log.append([event()])
    before = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: before() - 10**10)
    files.log.append([event()])
    FileLog(files.workspace, files.folder).append([event()])
    (files.folder / ".lock").unlink()
    FileLog(files.workspace, files.folder).append([event()])
    places = [position_key(at) for at, _ in files.entries()]
    assert len(places) == 4 and places == sorted(set(places))


def test_an_event_from_many_senders_at_once_is_in_the_files_once(files):
    batches = [
        [event(f"u{n % 3}", f"many{n}") for n in range(first, first + 10)]
        for first in range(0, 60, 5)
    ]
    logs = itertools.cycle([files.log, FileLog(files.workspace, files.folder)])
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda batch: next(logs).append(batch), batches))
    assert sorted(files.ids()) == sorted({e["event_id"] for batch in batches for e in batch})
    assert sum(answer.accepted for answer in answers) == len(files.ids())
    for user in ("u0", "u1", "u2"):
        places = [position_key(at) for at, _ in overlay(files.workspace, user)]
        assert places == sorted(places) and len(places) > 15


def test_a_disk_that_fails_leaves_nothing_and_the_retry_is_taken(files, monkeypatch):
    def broken(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", broken)
        with pytest.raises(OnlineStoreUnavailable, match="No space left"):
            files.log.append([e := event()])
    assert files.entries() == []
    assert files.log.append([e]) == Appended(1)
    assert [path.name for path in files.folder.rglob("*.tmp")] == []


@pytest.mark.parametrize(
    ("where", "name", "answer"),
    [
        ("before the write", "write", Appended(1)),
        ("before the file has its name", "replace", Appended(1)),
        ("before the marks", "settle", Appended(0, (0,))),
    ],
)
def test_a_kill_neither_loses_nor_doubles(files, monkeypatch, where, name, answer):
    files.log.append([event()])
    e = event("victim", item="last")
    with monkeypatch.context() as patch:
        owner = {
            "write": "feature_repo.events.log_folder.Writer",
            "replace": "os",
            "settle": "serving.event_log.dedup.EventDedup",
        }
        patch.setattr(f"{owner[name]}.{name}", die)
        in_a_process_that_is_killed(lambda: FileLog(files.workspace, files.folder).append([e]))
    assert files.log.append([e]) == answer, where
    assert files.ids().count(e["event_id"]) == 1
    assert [item for _, item in overlay(files.workspace, "victim")] == ["last"]
    assert files.log.append([e, event()]) == Appended(1, (0,))


def test_redis_killed_after_the_write_is_made_good_by_the_next_append(files, monkeypatch):
    write = file_log.Writer.write
    with monkeypatch.context() as patch:
        patch.setattr(
            file_log.Writer, "write", lambda *a: (write(*a), kill_redis(files.workspace))[0]
        )
        with pytest.raises(OnlineStoreUnavailable, match="redis.sock|(?i:connect)"):
            files.log.append([e := event("late")])
    files.log = FileLog(files.workspace, files.folder)  # starts the embedded Redis again
    assert files.log.append([e]) == Appended(0, (0,))
    assert files.ids() == [e["event_id"]]
    assert len(overlay(files.workspace, "late")) == 1


def test_a_redis_that_lost_everything_learns_the_last_day_from_the_files(files):
    files.log.append([e := event("kept")])
    with client(files.workspace) as server:
        server.flushall()
    assert files.log.append([e]) == Appended(0, (0,))
    assert len(overlay(files.workspace, "kept")) == 1
