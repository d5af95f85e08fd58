"""A data set's files replayed over HTTP.

They go to the real intake on a real Redis, and to a server that misbehaves.
"""

import json
import socket
import threading
import time

import pytest
import uvicorn
from fastapi import FastAPI, Request, Response
from prometheus_client import Counter

from feature_repo.dataset import SpecError, load_spec
from feature_repo.stores.embedded_redis import release as stop_redis
from feature_repo.workspace import Workspace
from pipelines.operations.replay import ReplayConfig, ReplayFailed, load_events, replay
from pipelines.workflow.data_sets import SPECS, find_spec
from serving.api.schemas import EventBatch
from serving.event_log.redis_stream import RedisStreamLog
from serving.intake import Intake
from tests.support.command_line import funnel

START = 1_465_412_560
HEADER = "timestamp,eventType,contentId,personId"


@pytest.fixture(scope="module")
def spec():
    return load_spec(SPECS / "deskdrop.toml")


@pytest.fixture
def data(tmp_path):
    """Six events over ten seconds, out of order in the file, and a bad row."""
    rows = [
        (4, "LIKE", "i2", "u2"),
        (0, "VIEW", "i1", "u1"),
        (10, "VIEW", "i5", "u1"),
        (2, "COMMENT CREATED", "i1", "u1"),
    ]
    rows += [(4, "VIEW", "i3", "u1"), (8, "BOOKMARK", "i4", "u3"), (9, "VIEW", "", "u3")]
    lines = [
        HEADER,
        *(f"{START + second},{kind},{item},{user}" for second, kind, item, user in rows),
    ]
    (tmp_path / "users_interactions.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


class Server:
    """A server on a port of its own; ``requests`` has when each came and the events in it."""

    def __init__(self, answer, port=None):
        self.requests, self._answer = [], answer
        if port is None:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
        self.port, self.url = port, f"http://127.0.0.1:{port}"
        app = FastAPI()
        app.post("/v1/events", status_code=202)(self._events)
        self._server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    async def _events(self, request: Request):
        events = (await request.json())["events"]
        self.requests.append((time.time(), events))
        return self._answer(len(self.requests), events)

    def __enter__(self):
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        return self

    def __exit__(self, *_):
        self._server.should_exit = True
        self._thread.join(10)

    def events(self):
        return [event for _, events in self.requests for event in events]


def take_all(_, events):
    return {"accepted": len(events), "duplicates": 0, "rejected": []}


@pytest.fixture
def intake(tmp_path, spec):
    """What the API does with the events of a request, on a Redis of its own."""
    workspace = Workspace(tmp_path / "w")
    counter = Counter("events", "", ["outcome"], registry=None)
    yield Intake(RedisStreamLog(workspace), spec, counter)
    stop_redis(workspace.redis)


def config(url, **options):
    return ReplayConfig(url, **{"run": "r", "speed": 0.0, **options})


def test_events_go_in_order_with_their_gaps_scaled(spec, data):
    events = load_events(spec, data)
    with Server(take_all) as server:
        tally = replay(events, config(server.url, speed=10.0))
    sent = server.events()
    assert [(e["item_id"], e["type"]) for e in sent if e["timestamp"] != sent[2]["timestamp"]] == [
        ("i1", "view"), ("i1", "comment"), ("i4", "bookmark"), ("i5", "view")
    ]  # fmt: skip
    assert {(e["item_id"], e["type"], e["user_id"]) for e in sent[2:4]} == {
        ("i2", "like", "u2"),
        ("i3", "view", "u1"),
    }
    first = sent[0]["timestamp"]
    assert [e["timestamp"] - first for e in sent] == pytest.approx(
        [0, 0.2, 0.4, 0.4, 0.8, 1.0], abs=1e-6
    )
    for came, batch in server.requests:
        assert all(-0.001 <= came - event["timestamp"] < 0.5 for event in batch)
    # As soon as they are due: on a slow machine several may be due at once, but never one before
    # its time.
    assert 2 <= len(server.requests) <= 5 and sum(len(batch) for _, batch in server.requests) == 6
    assert tally.summary() | {"seconds": 0, "events_per_s": 0} == {
        "sent": 6, "accepted": 6, "duplicates": 0, "rejected": 0, "seconds": 0, "events_per_s": 0
    }  # fmt: skip
    assert 1.0 <= tally.seconds < 2.0 and tally.events_per_s == pytest.approx(6 / tally.seconds)


def test_a_batch_has_its_most_and_no_speed_is_no_waiting(spec, data):
    with Server(take_all) as server:
        tally = replay(load_events(spec, data), config(server.url, batch=4))
    assert [len(batch) for _, batch in server.requests] == [4, 2]
    times = [e["timestamp"] for e in server.events()]
    assert times == sorted(set(times)) and abs(times[0] - time.time()) < 10
    assert tally.seconds < 1


def test_only_the_first_so_many(spec, data):
    assert load_events(spec, data, 3)["item_id"].tolist()[:2] == ["i1", "i1"]
    assert len(load_events(spec, data, 3)) == 3


def test_the_same_run_twice_is_duplicates_and_another_run_is_not(spec, data, intake):
    events = load_events(spec, data)
    with Server(lambda _, raw: intake.accept(EventBatch(events=raw).events)) as server:
        first = replay(events, config(server.url, batch=2))
        again = replay(events, config(server.url, speed=1_000.0))
        other = replay(events, config(server.url, run="s"))
    assert (first.accepted, first.duplicates, first.rejected) == (6, 0, 0)
    assert (again.accepted, again.duplicates, again.rejected) == (0, 6, 0)
    assert (other.accepted, other.duplicates) == (6, 0)


def test_rejections_are_counted_by_reason(data, spec, intake):
    events = load_events(spec, data).assign(type="stare")
    with Server(lambda _, raw: intake.accept(EventBatch(events=raw).events)) as server:
        tally = replay(events, config(server.url))
    assert (tally.accepted, tally.rejected) == (0, 6)
    assert [count for reason, count in tally.reasons.items() if "unknown type" in reason] == [6]


def test_a_full_log_is_waited_for_as_long_as_it_asks(spec, data, intake):
    calls = []

    def answer(number, raw):
        calls.append(time.monotonic())
        if number <= 2:
            return Response(status_code=429 if number == 1 else 503, headers={"Retry-After": "0.4"})
        return intake.accept(raw)

    with Server(answer) as server:
        tally = replay(load_events(spec, data), config(server.url, batch=6))
    assert all(later - earlier >= 0.39 for earlier, later in zip(calls, calls[1:], strict=False))
    assert [[e["event_id"] for e in batch] for _, batch in server.requests[1:]] == [
        [e["event_id"] for e in server.requests[0][1]]
    ] * 2
    assert (tally.sent, tally.accepted, tally.duplicates) == (6, 6, 0)


def test_an_answer_that_was_lost_is_asked_for_again(spec, data, intake):
    def answer(number, raw):
        taken = intake.accept(raw)
        return Response(status_code=502) if number == 1 else taken

    with Server(answer) as server:
        tally = replay(load_events(spec, data), config(server.url, batch=4))
    assert (tally.sent, tally.accepted, tally.duplicates) == (6, 2, 4)


def test_a_server_that_is_away_is_waited_for(spec, data):
    with Server(take_all) as gone:
        port = gone.port
    back = Server(take_all, port)
    threading.Timer(0.5, back.__enter__).start()
    tally = replay(load_events(spec, data), config(back.url))
    back.__exit__()
    assert tally.accepted == 6 and len(back.events()) == 6
    assert tally.seconds >= 0.5


def test_a_server_that_does_not_come_back_ends_it(spec, data):
    with Server(take_all) as gone:
        url = gone.url
    with pytest.raises(ReplayFailed, match="ConnectError.*continue with --run r"):
        replay(load_events(spec, data), config(url, patience_s=0.5))


@pytest.mark.parametrize("status", [404, 422, 500])
def test_a_refusal_ends_it(spec, data, status):
    with (
        Server(lambda *_: Response("no", status)) as server,
        pytest.raises(ReplayFailed, match=f"{status} no"),
    ):
        replay(load_events(spec, data), config(server.url))


def test_a_url_that_can_never_work_is_refused():
    with pytest.raises(ReplayFailed, match="begin with http"):
        config("127.0.0.1:8000")


def test_a_folder_without_the_files_is_said(tmp_path, spec):
    with pytest.raises(SpecError, match="no file matches"):
        load_events(spec, tmp_path)


def test_another_layout_with_values_and_ids(tmp_path):
    (tmp_path / "dataset.toml").write_text(
        'name = "own"\n[events]\npath = "log"\nuser = "u"\nitem = "i"\n'
        'timestamp = "t"\nvalue = "v"\nid = "n"\n'
        "[events.types.rating]\npositive = true\nmin_value = 0\n"
    )
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "b.jsonl").write_text(
        '{"u":"a","i":1,"t":"2020-01-01T00:00:02Z","v":4.5,"n":"x"}\n'
    )
    (tmp_path / "log" / "a.csv").write_text("u,i,t,v,n\nb,2,1577836801,3,y\nb,2,1577836801,3,y\n")
    spec = find_spec(str(tmp_path / "dataset.toml"))
    with Server(take_all) as server:
        replay(load_events(spec, tmp_path), config(server.url))
    assert [{k: v for k, v in e.items() if k != "timestamp"} for e in server.events()] == [
        {"event_id": "r:y", "user_id": "b", "item_id": "2", "type": "rating", "value": 3.0},
        {"event_id": "r:x", "user_id": "a", "item_id": "1", "type": "rating", "value": 4.5},
    ]


def test_the_command(data):
    with Server(take_all) as server:
        options = ["--speed", "0", "--limit", "5", "--batch", "2"]
        source = ["--data", "deskdrop", "--data-dir", data, "--url", server.url]
        done = funnel("replay", *source, *options)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert list(summary) == [
        "sent",
        "accepted",
        "duplicates",
        "rejected",
        "seconds",
        "events_per_s",
    ]
    assert (summary["sent"], summary["accepted"]) == (5, 5)
    assert [len(batch) for _, batch in server.requests] == [2, 2, 1]
    assert all(e["event_id"].startswith("replay-20") for e in server.events())
