"""What is measured and how it reads from outside, in one process and in several."""

import os
import shutil
import signal
import time
from pathlib import Path

import feast  # noqa: F401 - it changes how the client library of Prometheus works
import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.values import MutexValue

from serving.observability.exposition import render
from serving.observability.metrics import STAGES, Children, Metrics
from serving.observability.multiprocess import shared_by_workers, shared_folder
from serving.recommender.candidates import SOURCES
from tests.support import worker_app
from tests.support.forked import Forked, kill
from tests.support.waiting import wait_until


def samples(text):
    """Return every sample's value by name and label values."""
    families = text_string_to_metric_families(text if isinstance(text, str) else text.decode())
    return {
        (s.name, *(s.labels[k] for k in sorted(s.labels))): s.value
        for f in families
        for s in f.samples
    }


@pytest.fixture
def metrics():
    return Metrics()


def test_what_is_known_beforehand_is_there_at_zero(metrics):
    shown = samples(render(metrics))
    assert all(shown["funnel_stage_seconds_count", stage] == 0 for stage in STAGES)
    assert all(shown["funnel_shown_total", source] == 0 for source in SOURCES)
    assert shown["funnel_degraded_total", "online_store_unavailable"] == 0
    assert shown["funnel_events_total", "duplicate"] == 0
    assert (
        shown["funnel_shed_total",]
        == shown["funnel_release_refused_total",]
        == shown["funnel_in_flight",]
        == 0
    )


def test_requests_are_counted_and_timed_by_endpoint(metrics):
    for status, seconds in ((200, 0.004), (200, 0.011), (503, 0.5)):
        metrics.answered("/v1/events", status, seconds)
    shown = samples(render(metrics))
    assert shown["funnel_requests_total", "/v1/events", "200"] == 2
    assert shown["funnel_requests_total", "/v1/events", "503"] == 1
    assert shown["funnel_request_seconds_bucket", "/v1/events", "0.004"] == 1
    assert shown["funnel_request_seconds_bucket", "/v1/events", "0.0125"] == 2
    assert shown["funnel_request_seconds_sum", "/v1/events"] == pytest.approx(0.515)


def test_a_stage_that_fails_is_timed_as_well(metrics):
    with metrics.stage("rank"):
        time.sleep(0.002)
    with pytest.raises(ValueError), metrics.stage("rank"):
        raise ValueError
    shown = samples(render(metrics))
    assert shown["funnel_stage_seconds_count", "rank"] == 2
    assert 0.002 <= shown["funnel_stage_seconds_sum", "rank"] < 1.0


def test_a_child_is_made_once(metrics):
    children = Children(metrics.degraded)
    assert children["no_history"] is children["no_history"] is metrics.degraded.labels("no_history")


def test_candidates_are_counted_by_every_source_that_proposed_them(metrics):
    metrics.proposed(np.array([0b00001, 0b00011, 0b00011, 0b10000], dtype=np.uint8))
    shown = samples(render(metrics))
    sums = {source: shown["funnel_candidates_sum", source] for source in SOURCES}
    assert sums == dict.fromkeys(SOURCES, 0) | {"two_tower": 3, "similar": 2, "new": 1}
    assert shown["funnel_candidates_bucket", "0.0", "popular"] == 1  # it gave nothing


def test_shown_items_are_shared_among_their_sources(metrics):
    metrics.show(
        [["two_tower"], ["two_tower", "similar"], ["backfill"], ["two_tower", "popular", "new"]]
    )
    shown = samples(render(metrics))
    shares = {source: shown["funnel_shown_total", source] for source in SOURCES}
    assert sum(shares.values()) == pytest.approx(4)
    assert shares["two_tower"] == pytest.approx(1 + 1 / 2 + 1 / 3)


def test_losses_ages_and_breakers(metrics):
    metrics.degrade(["unknown_user", "no_history"])
    metrics.degrade(["no_history", "a new word"])
    metrics.observe_age("user_recent", 3.0)
    metrics.breaker("redis", "open")
    shown = samples(render(metrics))
    assert shown["funnel_degraded_total", "no_history"] == 2
    assert shown["funnel_degraded_total", "a new word"] == 1
    assert shown["funnel_feature_age_seconds_bucket", "5.0", "user_recent"] == 1
    assert shown["funnel_breaker_state", "redis"] == 2
    metrics.breaker("redis", "closed")
    assert samples(render(metrics))["funnel_breaker_state", "redis"] == 0


def test_a_swap_shows_one_release(metrics):
    for release in ("a", "b", "b"):
        metrics.serving(release)
    shown = samples(render(metrics))
    assert (shown["funnel_release_info", "a"], shown["funnel_release_info", "b"]) == (0, 1)


def test_what_nobody_has_measured_is_not_shown(metrics):
    shown = samples(render(metrics))
    assert ("funnel_items_age_seconds",) not in shown and ("funnel_index_recall",) not in shown
    metrics.index_recall.set(0.97)
    metrics.items_read(time.time() - 50)
    shown = samples(render(metrics))
    assert shown["funnel_index_recall",] == 0.97
    assert shown["funnel_items_age_seconds",] == pytest.approx(50, abs=5)
    metrics.items_read(None)
    assert samples(render(metrics))["funnel_items_age_seconds",] == float("inf")


def test_memory_is_that_of_the_process(metrics):
    shown = samples(render(metrics))
    assert shown["funnel_workers",] == 1
    assert shown["funnel_resident_memory_bytes",] > 10e6


def test_numbers_stay_in_memory_though_feast_is_imported(metrics):
    assert os.environ["PROMETHEUS_MULTIPROC_DIR"], "Feast has turned the multiprocess mode on"
    assert type(metrics.shed._value) is MutexValue


@pytest.fixture(scope="module")
def workers(tmp_path_factory):
    """Two real workers behind one port; yields a way to ask one, whichever takes the connection."""
    log, folder = tmp_path_factory.mktemp("workers") / "log", ""
    process = Forked(worker_app.main, out=log)
    try:
        wait_until(lambda: log.read_text().endswith("\n"), patience_s=60)
        port, folder = log.read_text().split()
        with httpx.Client(timeout=20, limits=httpx.Limits(max_keepalive_connections=0)) as client:
            yield lambda path: client.get(f"http://127.0.0.1:{port}{path}")
        assert list(Path(folder).glob("counter_worker*.db"))
    finally:
        kill(process)
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def both(ask):
    """Ask until each of two workers has answered; return how often which did."""
    answered, deadline = {}, time.monotonic() + 60
    while len(answered) < 2:
        assert time.monotonic() < deadline
        try:
            pid = ask("/pid").json()
        except httpx.TransportError:
            time.sleep(0.2)
            continue
        answered[pid] = answered.get(pid, 0) + 1
    return answered


def counted(ask):
    """Return how many requests all workers have counted so far; none may be under way."""
    time.sleep(0.5)  # an answer is out a moment before it is counted
    return samples(ask("/metrics").text).get(("funnel_requests_total", "/pid", "200"), 0)


def settled(ask, total):
    """Return the metrics once so many requests are counted.

    An answer is out a moment before it is.
    """
    deadline = time.monotonic() + 5
    while True:
        shown = samples(ask("/metrics").text)
        count = shown["funnel_requests_total", "/pid", "200"]
        assert count <= total
        if count == total:
            return shown
        assert time.monotonic() < deadline, f"{count} of {total} were counted"


def test_the_folder_of_the_workers_goes_with_them():
    with shared_by_workers() as folder:
        assert shared_folder() == folder and folder.is_dir()
    assert shared_folder() is None and not folder.exists()


def test_two_workers_answer_for_each_other(workers):
    total = counted(workers) + sum(both(workers).values())
    settled(workers, total)
    for _ in range(10):  # whoever answers
        shown = samples(workers("/metrics").text)
        assert shown["funnel_requests_total", "/pid", "200"] == total
        assert shown["funnel_request_seconds_count", "/pid"] == total
        assert shown["funnel_workers",] == 2
        assert (
            1 <= shown["funnel_in_flight",] <= 2
        )  # this request, and perhaps the end of the one before
        assert shown["funnel_release_info", "r1"] == 1
        assert shown["funnel_items_age_seconds",] == pytest.approx(100, abs=60)
        assert ("funnel_index_recall",) not in shown
        assert shown["funnel_degraded_total", "no_history"] == 0


def test_what_a_killed_worker_counted_stays(workers):
    pids = both(workers)
    before = counted(workers)
    killed = next(iter(pids))
    os.kill(killed, signal.SIGKILL)
    asked = 0
    while asked < 10:
        try:
            shown = samples(workers("/metrics").text)
        except httpx.TransportError:
            continue  # the connection was the dead one's
        asked += 1
        assert shown["funnel_requests_total", "/pid", "200"] == before
        assert 1 <= shown["funnel_in_flight",] <= 2
        assert 1 <= shown["funnel_workers",] <= 2
    alive = both(workers)  # the supervisor has started another one
    assert killed not in alive
    assert settled(workers, before + sum(alive.values()))["funnel_workers",] == 2
