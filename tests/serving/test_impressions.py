"""The log of what was served: whole, bounded, and never in a request's way."""

import asyncio
import itertools
import threading
import time
from dataclasses import fields
from datetime import datetime

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest
from prometheus_client import CollectorRegistry, Counter

from feature_repo.files import write_atomically
from feature_repo.stores.embedded_redis import release as stop_redis
from feature_repo.stores.feature_store import apply, feature_store
from feature_repo.workspace import Workspace
from serving import impressions as module
from serving.api.schemas import RecommendationRequest
from serving.engine import Engine
from serving.http.app import create_app
from serving.impressions import IMPRESSION_SCHEMA, Impression, ImpressionLog, read_impressions
from tests.support.an_impression import impression
from tests.support.tiny_release import SPEC
from tests.support.waiting import wait_until

POSITIONS = ("position", "row_position", "items_as_of")


class Count:
    """A counter of one log, and what it says."""

    # Feast's import makes counters of one name share their values, in whatever registry they are.
    names = (f"impressions_{number}" for number in itertools.count())

    def __init__(self):
        self.counter = Counter(next(self.names), "", ["outcome"], registry=CollectorRegistry())

    def __call__(self):
        outcomes = ("logged", "dropped", "failed")
        return tuple(int(self.counter.labels(outcome)._value.get()) for outcome in outcomes)


@pytest.fixture
def count():
    return Count()


def test_a_row_is_what_was_offered(tmp_path, count):
    log = ImpressionLog(tmp_path, count.counter)
    shapes = [(3, 2), (0, 0), (2, 0), (1, 1)]
    for number, (shown, ranked) in reversed(list(enumerate(shapes))):
        log.offer(impression(number, shown, ranked))
    log.close()
    table = read_impressions(tmp_path)
    assert table.schema.equals(IMPRESSION_SCHEMA)
    assert {field.name for field in fields(Impression)} == set(IMPRESSION_SCHEMA.names)
    rows = table.to_pylist()
    assert [row["request_id"] for row in rows] == ["r0", "r1", "r2", "r3"]
    for number, (shown, ranked) in enumerate(shapes):
        row, offered = rows[number], impression(number, shown, ranked)
        for name in (
            "user_id",
            "time",
            "release",
            "k",
            "degraded",
            "item_ids",
            "sources",
            *POSITIONS,
        ):
            assert row[name] == getattr(offered, name), name
        assert row["scores"] == offered.scores.tolist()
        assert row["propensities"] == [1.0 if number % 2 else 0.5] * shown
        assert len(row["numeric"]) == len(row["categorical"]) == shown
        for item in range(ranked):
            np.testing.assert_array_equal(row["numeric"][item], offered.numeric[item])
            assert row["categorical"][item] == offered.categorical[item].tolist()
        assert row["numeric"][ranked:] == row["categorical"][ranked:] == [[]] * (shown - ranked)
    assert count() == (4, 0, 0)


def test_a_file_of_before_there_was_a_column_is_read(tmp_path, count):
    log = ImpressionLog(tmp_path, count.counter)
    log.offer(impression(1))
    log.close()
    (file,) = tmp_path.glob("*.parquet")
    pq.write_table(pq.read_table(file).drop_columns(["row_position"]), file)
    (row,) = read_impressions(tmp_path).to_pylist()
    assert (row["row_position"], row["position"]) == (None, "1-0")


def test_requests_since_a_moment(tmp_path, count):
    log = ImpressionLog(tmp_path, count.counter)
    for number in range(4):
        log.offer(impression(number))
    log.close()
    moment = impression(2).time
    assert read_impressions(tmp_path, ["request_id"], since=moment)["request_id"].to_pylist() == [
        "r2",
        "r3",
    ]


def test_no_folder_is_an_empty_table(tmp_path):
    table = read_impressions(tmp_path / "nothing")
    assert len(table) == 0 and table.schema.equals(IMPRESSION_SCHEMA)
    assert read_impressions(tmp_path / "nothing", ["time"]).column_names == ["time"]


def test_a_blocked_writer_costs_impressions_and_no_time(tmp_path, count, monkeypatch):
    entered, go = threading.Event(), threading.Event()

    def slow(path, content):
        entered.set()
        assert go.wait(30)
        write_atomically(path, content)

    monkeypatch.setattr(module, "write_atomically", slow)
    monkeypatch.setattr(module, "ROWS_PER_FILE", 1)
    log = ImpressionLog(tmp_path, count.counter, queued=5)
    log.offer(impression(0))
    assert entered.wait(10)
    start = time.perf_counter()
    for number in range(1, 101):
        log.offer(impression(number))
    assert time.perf_counter() - start < 1.0
    assert count() == (0, 95, 0)
    go.set()
    log.close()
    assert read_impressions(tmp_path)["request_id"].to_pylist() == [
        f"r{number}" for number in range(6)
    ]
    assert count() == (6, 95, 0)


def test_a_file_is_due_when_it_is_full_or_old_enough(tmp_path, count, monkeypatch):
    monkeypatch.setattr(module, "ROWS_PER_FILE", 4)
    monkeypatch.setattr(module, "FLUSH_S", 0.3)
    log = ImpressionLog(tmp_path, count.counter)
    for number in range(6):
        log.offer(impression(number))
    wait_until(lambda: count()[0] == 6)
    sizes = [pq.read_metadata(file).num_rows for file in sorted(tmp_path.glob("*.parquet"))]
    assert sizes == [4, 2]
    log.close()


def test_close_writes_what_waits_and_later_offers_are_dropped(tmp_path, count, monkeypatch):
    monkeypatch.setattr(module, "FLUSH_S", 1_000.0)
    log = ImpressionLog(tmp_path, count.counter)
    for number in range(50):
        log.offer(impression(number))
    log.close()
    log.close()
    log.offer(impression(99))
    assert len(read_impressions(tmp_path)) == 50
    assert count() == (50, 1, 0)


def test_close_does_not_wait_for_ever(tmp_path, count, monkeypatch):
    go = threading.Event()
    monkeypatch.setattr(module, "write_atomically", lambda *_: go.wait(30))
    monkeypatch.setattr(module, "ROWS_PER_FILE", 1)
    log = ImpressionLog(tmp_path, count.counter, queued=1)
    log.offer(impression(0))
    wait_until(lambda: log._queue.empty())
    log.offer(impression(1))
    start = time.monotonic()
    log.close(timeout_s=0.2)
    assert time.monotonic() - start < 5
    go.set()


def test_a_failing_disk_is_counted_and_outlived(tmp_path, count, monkeypatch):
    monkeypatch.setattr(module, "FLUSH_S", 0.05)
    folder = tmp_path / "impressions"
    folder.write_text("a file where the folder should be")
    log = ImpressionLog(folder, count.counter)
    log.offer(impression(0))
    wait_until(lambda: count() == (0, 0, 1))
    folder.unlink()
    log.offer(impression(1))
    log.close()
    assert read_impressions(folder)["request_id"].to_pylist() == ["r1"]
    assert count() == (1, 0, 1)


def test_a_row_that_cannot_be_written_is_counted_too(tmp_path, count):
    broken = impression(0)
    object.__setattr__(broken, "scores", np.zeros(99, dtype=np.float32))
    log = ImpressionLog(tmp_path, count.counter)
    log.offer(broken)
    log.close()
    assert count() == (0, 0, 1)


def test_readers_see_whole_files_only(tmp_path, count, monkeypatch):
    monkeypatch.setattr(module, "ROWS_PER_FILE", 3)
    logs = [ImpressionLog(tmp_path, count.counter) for _ in range(2)]
    (tmp_path / ".20231114T000000.000000Z-1-000000.parquet.tmp").write_bytes(b"PAR1 half a file")
    (tmp_path / ".hidden.parquet").write_bytes(b"PAR1 half a file")
    seen = 0
    for number in range(300):
        logs[number % 2].offer(impression(number))
        if number % 10 == 0:
            now = len(read_impressions(tmp_path, ["request_id"]))
            assert now >= seen
            seen = now
    for log in logs:
        log.close()
    names = read_impressions(tmp_path)["request_id"].to_pylist()
    assert names == [f"r{number}" for number in range(300)]


@pytest.fixture
def workspace(tmp_path):
    """A store in which everything is registered and nothing is known."""
    workspace = Workspace(tmp_path)
    write_atomically(workspace.ingest / "dataset.json", SPEC.model_dump_json())
    apply(feature_store(workspace), workspace)
    yield workspace
    stop_redis(workspace.redis)


def test_what_the_engine_served_is_logged(tiny, workspace):
    engine = Engine(tiny.release, workspace)
    logged = engine.metrics.impressions.labels("logged")
    before = logged._value.get()
    answers = [
        engine.recommend(RecommendationRequest(user_id=f"u{n}", k=k)) for n, k in enumerate([5, 40])
    ]
    engine.close()
    table = read_impressions(workspace.impressions)
    rows = table.to_pylist()
    assert [row["user_id"] for row in rows] == ["u0", "u1"]  # and no warm-up
    for row, answer in zip(rows, answers, strict=True):
        assert (row["request_id"], row["release"]) == (answer["request_id"], tiny.release.id)
        assert row["degraded"] == answer["degraded"]
        assert datetime.fromisoformat(row["items_as_of"]).timestamp() < row["time"]
        assert (row["position"], row["row_position"]) == (None, None)
        assert row["item_ids"] == [item["item_id"] for item in answer["items"]]
        assert row["sources"] == [item["sources"] for item in answer["items"]]
        assert row["scores"] == [item["score"] for item in answer["items"]]
        ranked = [
            place for place, item in enumerate(answer["items"]) if item["sources"] != ["backfill"]
        ]
        assert [place for place, vector in enumerate(row["numeric"]) if vector] == ranked
        numeric = np.array([row["numeric"][place] for place in ranked], dtype=np.float32)
        categorical = np.array([row["categorical"][place] for place in ranked], dtype=np.int32)
        scores, _ = tiny.release.recommender.ranker.score(numeric, categorical)
        np.testing.assert_allclose(scores, np.array(row["scores"])[ranked], rtol=1e-6)
        hours = categorical[:, list(tiny.codec.categorical).index("hour_of_day")]
        assert set(hours) == {int(row["time"] // 3_600) % 24}
    assert ["backfill"] in rows[1]["sources"]
    assert logged._value.get() - before == 2


def test_an_engine_can_be_asked_not_to_log(tiny, workspace):
    engine = Engine(tiny.release, workspace, log_impressions=False)
    assert engine.recommend(RecommendationRequest(user_id="u1", k=3))["items"]
    engine.close()
    assert not workspace.impressions.exists()


def test_a_server_that_stops_writes_what_it_served(tiny, workspace):
    app = create_app(workspace, tiny.release)

    async def serve():
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
        ):
            answer = await client.post("/v1/recommendations", json={"user_id": "u1", "k": 4})
            assert "funnel_impressions_total" in (await client.get("/metrics")).text
            return answer.json()

    answer = asyncio.run(serve())
    row = read_impressions(workspace.impressions).to_pylist()[0]
    assert row["request_id"] == answer["request_id"]
    assert row["item_ids"] == [item["item_id"] for item in answer["items"]]
