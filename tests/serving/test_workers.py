"""``funnel serve`` with two workers: one is killed, all are replaced, they drain, and shed load."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from feature_repo.stores.embedded_redis import ensure_running, socket_path
from feature_repo.stores.embedded_redis import release as stop_redis
from feature_repo.workspace import Workspace
from serving.process.supervisor import Supervisor
from tests.support.access_app import SAFE, is_problem
from tests.support.forked import Forked, children_of
from tests.support.tiny_release import Tiny, register
from tests.support.tiny_server import PATIENCE_S, TinyServer, tiny_server
from tests.support.waiting import wait_until as wait_for

QUERY = {"user_id": "u1", "k": 3}

wait_until = partial(wait_for, patience_s=PATIENCE_S)


@pytest.fixture(scope="module")
def server(registered_workspace: Workspace, tiny: Tiny) -> Iterator[TinyServer]:
    with tiny_server(registered_workspace, tiny.folder, FUNNEL_UNDER_WAY="2") as running:
        yield running


def test_two_workers_answer(server: TinyServer) -> None:
    assert len(server.workers()) == 2
    answer = server.recommend()
    assert len(answer.json()["items"]) == 3 and SAFE.items() <= answer.headers.items()
    # A worker answers before its own numbers are in the file that the others read.
    wait_until(lambda: "funnel_workers 2.0" in httpx.get(f"{server.url}/metrics", timeout=20).text)


def test_a_killed_worker_is_replaced(server: TinyServer) -> None:
    before = server.workers()
    killed = min(before)
    os.kill(killed, signal.SIGKILL)
    assert server.recommend().status_code == 200, "the other worker answers"
    wait_until(lambda: len(server.workers()) == 2 and killed not in server.workers())
    assert before - {killed} <= server.workers()


def test_sighup_replaces_all_workers_and_no_request_fails(server: TinyServer) -> None:
    before = server.workers()
    done = threading.Event()
    statuses: Counter[int] = Counter()

    def keep_asking() -> None:
        while not done.is_set():
            statuses[server.recommend().status_code] += 1

    client = threading.Thread(target=keep_asking)
    client.start()
    try:
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: len(server.workers()) == 2 and not before & server.workers())
    finally:
        done.set()
        client.join()
    assert set(statuses) == {200}, server.log.read_text()


def test_a_draining_worker_answers_and_closes_its_connections(server: TinyServer) -> None:
    with httpx.Client(base_url=server.url, timeout=20) as client:
        assert "connection" not in client.get("/healthz").headers
        before = server.workers()
        for worker in before:
            os.kill(worker, signal.SIGTERM)
        time.sleep(0.1)
        answer = client.post("/v1/recommendations", json=QUERY)
        assert (answer.status_code, answer.headers["connection"]) == (200, "close")
    wait_until(lambda: len(server.workers()) == 2 and not before & server.workers())
    wait_until(lambda: httpx.get(f"{server.url}/readyz", timeout=20).status_code == 200)


def test_load_beyond_the_queue_is_shed(server: TinyServer) -> None:
    async def ask_at_once(count: int) -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=count)
        async with httpx.AsyncClient(base_url=server.url, timeout=20, limits=limits) as client:
            requests = (client.post("/v1/recommendations", json=QUERY) for _ in range(count))
            return await asyncio.gather(*requests)

    def shed() -> list[httpx.Response]:
        answers = asyncio.run(ask_at_once(60))
        assert {answer.status_code for answer in answers} <= {200, 503}
        return [answer for answer in answers if answer.status_code == 503]

    refusals: list[httpx.Response] = []
    wait_until(lambda: bool(refusals.extend(shed()) or refusals))
    assert is_problem(refusals[0], 503) and refusals[0].headers["retry-after"] == "1"
    metrics = httpx.get(f"{server.url}/metrics", timeout=20).text
    [count] = [line for line in metrics.splitlines() if line.startswith("funnel_shed_total ")]
    assert float(count.split()[1]) >= len(refusals)
    assert server.recommend().status_code == 200, "it answers again"


def test_the_embedded_redis_ends_with_the_server(tiny: Tiny, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    register(workspace)
    store = redis.Redis(unix_socket_path=str(socket_path(workspace.redis)))
    with tiny_server(workspace, tiny.folder) as server:
        assert httpx.get(f"{server.url}/readyz", timeout=20).json()["online_store"] is True
        assert store.ping()
    with pytest.raises(redis.ConnectionError, match="connecting"):
        store.ping()


def fill_backlog(path: Path) -> list[socket.socket]:
    """Open connections that a stopped server does not accept, until no more can wait."""
    waiting = []
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.setblocking(False)
        try:
            connection.connect(str(path))
        except BlockingIOError:
            connection.close()
            return waiting
        waiting.append(connection)


def test_nothing_waits_for_a_redis_that_hangs(tiny: Tiny, tmp_path: Path) -> None:
    """Neither recommendations nor probes, while 24 events do, nor the end of the server.

    The kernel lets nobody connect once enough wait: ``connect()`` has no end of its own there.
    """
    workspace = Workspace(tmp_path / "w")
    register(workspace)
    with tiny_server(workspace, tiny.folder, FUNNEL_REDIS_TIMEOUT_MS="100") as server:
        path = socket_path(workspace.redis)
        with redis.Redis(unix_socket_path=str(path)) as client:
            pid = client.info("server")["process_id"]
        event = {"event_id": "e", "user_id": "u1", "item_id": "i1", "type": "view"}
        body = {"events": [event | {"timestamp": time.time()}]}

        def send_event() -> None:
            statuses.append(
                httpx.post(f"{server.url}/v1/events", json=body, timeout=60).status_code
            )

        os.kill(pid, signal.SIGSTOP)
        statuses: list[int] = []
        senders = [threading.Thread(target=send_event) for _ in range(24)]
        waiting = fill_backlog(path)
        try:
            for sender in senders:
                sender.start()
            for _ in range(8):
                assert server.recommend().status_code == 200
                for probe in ("healthz", "readyz"):
                    assert httpx.get(f"{server.url}/{probe}", timeout=5).status_code == 200
            wait_until(lambda: httpx.get(f"{server.url}/readyz").json()["online_store"] is False)
            for sender in senders:
                sender.join()
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(PATIENCE_S) == 0
        finally:
            os.kill(pid, signal.SIGCONT)
            for connection in waiting:
                connection.close()
        assert set(statuses) == {503}
    ensure_running(workspace.redis)  # the server could not stop what hung: this process does
    stop_redis(workspace.redis)


def supervise_slow_starters() -> None:
    """Run one worker that needs a while before it has handlers of its own."""
    set_handler = signal.signal

    def slow(number: Any, handler: Any) -> Any:
        if handler == signal.SIG_DFL:
            time.sleep(1.0)
        return set_handler(number, handler)

    signal.signal = slow

    def work(ready: Callable[[], None], _slot: int) -> None:
        ready()
        signal.pause()

    Supervisor(1, work, None).run(lambda: None)


def test_a_worker_that_has_just_been_forked_loses_no_signal() -> None:
    supervisor = Forked(supervise_slow_starters)
    try:
        wait_until(lambda: bool(children_of(supervisor.pid)))
        (worker,) = children_of(supervisor.pid)
        os.kill(worker, signal.SIGTERM)
        assert supervisor.wait(20) == 1, "a server whose worker ends while it starts ends"
    finally:
        supervisor.kill()
