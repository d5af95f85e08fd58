"""What breaks around a server under load.

No request fails, no rule is broken, and all is well again within seconds.

`make test-faults` runs these; each ends with one line of figures (`-s` shows them).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import redis

from benchmarks.live import free_port
from benchmarks.load import Load, encode_requests, load
from feature_repo import columns as c
from feature_repo.files import link_atomically, read_json
from feature_repo.stores.embedded_redis import ensure_running, socket_path
from feature_repo.workspace import Workspace
from pipelines.ingest.ingested import read_events
from pipelines.streaming.status import stream_status
from pipelines.workflow.stages import run_materialize
from serving.releases.manifest import read_manifest, write_manifest
from serving.releases.release import load_release
from tests.support.api_server import workers_of
from tests.support.damaged_release import DAMAGE

pytestmark = pytest.mark.faults

RATE = 120
FAULT_S = 10.0
RECOVERY_S = 5.0
K = 10


@dataclass
class Server:
    workspace: Workspace
    port: int
    process: subprocess.Popen[bytes]
    users: list[str]
    excluded: list[str]

    def requests(self) -> list[bytes]:
        bodies = [
            json.dumps({"user_id": u, "k": K, "exclude": self.excluded}).encode()
            for u in self.users
        ]
        return encode_requests("/v1/recommendations", bodies)

    def redis(self) -> redis.Redis:
        return redis.Redis(
            unix_socket_path=str(socket_path(self.workspace.redis)), socket_timeout=5
        )

    def workers(self) -> list[int]:
        return workers_of(self.process, self.port)

    def serving(self) -> str:
        return httpx.get(f"http://127.0.0.1:{self.port}/readyz", timeout=10).json()["release"]


@contextlib.contextmanager
def served(workspace: Workspace, **environment: str) -> Iterator[Server]:
    port = free_port()
    command = [
        sys.executable,
        "-c",
        "from pipelines.commands.cli import main; main()",
        "serve",
        "--workers",
        "2",
    ]
    command += ["--home", str(workspace.root), "--port", str(port)]
    usual = {
        "FUNNEL_DEADLINE_MS": "200",
        "FUNNEL_REDIS_TIMEOUT_MS": "50",
    }  # tests share the cores with their load
    with (workspace.root / "serve.log").open("ab") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env={**os.environ, **usual, **environment}
        )
        try:
            deadline = time.monotonic() + 120
            while True:
                with contextlib.suppress(httpx.TransportError):
                    if httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=5).status_code == 200:
                        break
                assert process.poll() is None and time.monotonic() < deadline, (
                    workspace.root / "serve.log"
                ).read_text()
                time.sleep(0.2)
            events = read_events(workspace, [c.USER, c.ITEM])
            yield Server(
                workspace,
                port,
                process,
                list(events[c.USER].unique()[:100]),
                list(events[c.ITEM].unique()[:5]),
            )
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)


@pytest.fixture(scope="module")
def server(built, copy, tmp_path_factory) -> Iterator[Server]:
    with copy(built.workspace, tmp_path_factory.mktemp("faults") / "w") as workspace:
        run_materialize(workspace)
        with served(workspace) as running:
            yield running


@dataclass
class Watched:
    load: Load
    begun: float
    ended: float

    def healthy_after(self) -> float:
        """Seconds from the fault's end to the last answer that named a loss that it causes."""
        bad = [at for at, status, body in self.load.answers if status == 200 and losses(body)]
        return max(0.0, max(bad, default=self.ended) - self.ended)


CAUSED = {
    "online_store_unavailable",
    "ranker_unavailable",
    "ranker_skipped",
    "retrieval_unavailable",
    "unknown_user",
}


def losses(body: bytes) -> set[str]:
    return set(json.loads(body)["degraded"]) & CAUSED


def under_load(
    server: Server, fault: Callable[[], None], after_s: float = RECOVERY_S + 2.0, **options: float
) -> Watched:
    """Load a server, break something for as long as ``fault`` takes, and go on for a while."""
    moments: list[float] = []

    def breaking() -> None:
        time.sleep(2.0)
        moments.append(time.time())
        fault()
        moments.append(time.time())
        time.sleep(after_s)
        done.set()

    done, result = threading.Event(), []
    thread = threading.Thread(target=breaking)
    thread.start()
    while not done.is_set():
        result.append(
            load(
                server.port,
                server.requests(),
                connections=8,
                seconds=3.0,
                rate=options.get("rate", RATE),
                keep=True,
            )
        )
    thread.join()
    whole = Load()
    for part in result:
        whole.add(part)
    return Watched(whole, *moments)


def check(
    server: Server, name: str, watched: Watched, allowed: frozenset[int] = frozenset({200})
) -> None:
    found = watched.load
    assert set(found.statuses) <= allowed, found.statuses
    broken = 0
    for _, status, body in found.answers:
        if status == 200:
            ids = [item["item_id"] for item in json.loads(body)["items"]]
            broken += len(set(ids)) != K or bool(set(ids) & set(server.excluded))
    assert broken == 0
    during = Counter(
        word
        for at, s, body in found.answers
        if s == 200 and at < watched.ended
        for word in losses(body)
    )
    report = {
        "fault": name, "seconds": round(watched.ended - watched.begun, 1),
        "requests": sum(found.statuses.values()),
        "statuses": dict(found.statuses), "retried": found.retried, "losses": dict(during),
        "healthy_after_s": round(watched.healthy_after(), 1), "p99_ms": found.percentile(99),
    }  # fmt: skip
    sys.stdout.write(json.dumps(report) + "\n")
    assert watched.healthy_after() <= RECOVERY_S, report


def for_a_while(act: Callable[[], None], every_s: float) -> None:
    end = time.time() + FAULT_S
    while time.time() < end:
        with contextlib.suppress(redis.RedisError, OSError):
            act()
        time.sleep(every_s)


def pid_of(server: Server) -> int:
    with server.redis() as client:
        return int(client.info("server")["process_id"])


def test_redis_is_killed_again_and_again(server: Server) -> None:
    def kill() -> None:
        os.kill(pid_of(server), signal.SIGKILL)

    check(server, "Redis killed", under_load(server, lambda: for_a_while(kill, 0.2)))


def test_redis_stands_still(server: Server) -> None:
    def pause() -> None:
        pid = pid_of(server)
        os.kill(pid, signal.SIGSTOP)
        time.sleep(FAULT_S)
        os.kill(pid, signal.SIGCONT)

    watched = under_load(server, pause)
    check(server, "Redis paused", watched)
    assert any(losses(body) for _, _, body in watched.load.answers)


def test_redis_is_slow(server: Server) -> None:
    with server.redis() as client:
        check(
            server,
            "Redis 200 ms slow",
            under_load(
                server,
                lambda: for_a_while(lambda: client.execute_command("DEBUG", "SLEEP", "0.2"), 0.0),
            ),
        )


def test_redis_is_flushed(server: Server) -> None:
    def flush() -> None:
        with server.redis() as client:
            client.flushall()
        time.sleep(FAULT_S)
        run_materialize(server.workspace)

    check(server, "Redis flushed", under_load(server, flush))


def test_redis_is_full(server: Server) -> None:
    event = {
        "event_id": "full",
        "user_id": "u",
        "item_id": server.excluded[0],
        "type": "view",
        "timestamp": time.time(),
    }

    def fill() -> None:
        with server.redis() as client:
            client.config_set("maxmemory", "1mb")
            answer = httpx.post(
                f"http://127.0.0.1:{server.port}/v1/events", json={"events": [event]}, timeout=10
            )
            assert answer.status_code == 429 and "retry-after" in answer.headers
            time.sleep(FAULT_S)
            client.config_set("maxmemory", "0")

    check(server, "Redis full", under_load(server, fill))


def test_redis_has_another_password(server: Server) -> None:
    def change() -> None:
        with server.redis() as client:
            client.config_set("requirepass", "another")
            client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            time.sleep(FAULT_S)
            client.config_set("requirepass", "")

    watched = under_load(server, change)
    check(server, "Redis wrong password", watched)
    assert any(losses(body) for _, _, body in watched.load.answers)


def start_job(server: Server) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", "from pipelines.commands.cli import main; main()", "stream"]
    with (server.workspace.root / "stream.log").open("ab") as log:
        return subprocess.Popen(
            [*command, "--home", str(server.workspace.root)], stdout=log, stderr=log
        )


def streamed(server: Server, patience_s: float = 240.0) -> None:
    """Wait until the job has folded every accepted event into features."""
    deadline = time.monotonic() + patience_s
    with server.redis() as client:
        while stream_status(client).pending:
            assert time.monotonic() < deadline, (server.workspace.root / "stream.log").read_text()[
                -3_000:
            ]
            time.sleep(0.5)


def test_the_streaming_job_is_dead(server: Server) -> None:
    """Events of a dead job are in the very next answer all the same.

    A new job takes up every one of them.
    """
    item = server.excluded[0]
    url = f"http://127.0.0.1:{server.port}"

    def click(number: int) -> None:
        event = {
            "event_id": f"dead-{number}",
            "user_id": f"dead-{number}",
            "item_id": item,
            "type": "view",
        }
        answer = httpx.post(
            f"{url}/v1/events", json={"events": [event | {"timestamp": time.time()}]}, timeout=10
        )
        assert answer.json()["accepted"] == 1
        features = httpx.get(f"{url}/v1/users/dead-{number}/features", timeout=10).json()[
            "features"
        ]
        assert item in features[c.HISTORY_ITEMS]

    job = start_job(server)
    try:
        click(0)
        streamed(server)

        def die() -> None:
            job.kill()
            job.wait()
            for number in range(1, 21):
                click(number)
                time.sleep(FAULT_S / 20)

        watched = under_load(server, die)
        job = start_job(server)
        check(server, "streaming job dead", watched)
        streamed(server)
    finally:
        job.terminate()
        job.wait(timeout=120)


def test_a_worker_is_killed(server: Server) -> None:
    def kill() -> None:
        for _ in range(4):
            os.kill(server.workers()[0], signal.SIGKILL)
            time.sleep(FAULT_S / 4)

    watched = under_load(server, kill)
    check(server, "worker killed four times", watched)
    assert len(server.workers()) == 2


def test_a_rolling_restart(server: Server) -> None:
    before = set(server.workers())

    def restart() -> None:
        server.process.send_signal(signal.SIGHUP)
        time.sleep(FAULT_S)

    check(server, "rolling restart", under_load(server, restart))
    assert not before & set(server.workers())


def test_three_times_the_capacity(server: Server) -> None:
    capacity = load(server.port, server.requests(), connections=16, seconds=4.0).rps
    over = load(
        server.port,
        server.requests(),
        connections=64,
        seconds=FAULT_S,
        rate=3 * capacity,
        keep=True,
    )
    now = time.time()
    check(
        server,
        f"three times {capacity:.0f}/s",
        Watched(over, now - FAULT_S, now),
        frozenset({200, 503}),
    )
    calm = load(server.port, server.requests(), connections=4, seconds=3.0, rate=RATE, keep=True)
    check(server, "after it", Watched(calm, now, time.time()))


def other_release(server: Server) -> Path:
    """A second release that differs in its rules only."""
    first = (server.workspace.releases / "current").resolve()
    folder = server.workspace.releases / "other"
    if not folder.exists():
        shutil.copytree(first, folder)
        rules = read_json(folder / "filters.json")
        (folder / "filters.json").write_text(json.dumps({**rules, "diversity": 0.01}))
        write_manifest(folder, read_manifest(folder).provenance)
    return folder


def test_releases_are_promoted_fifty_times(server: Server) -> None:
    current = server.workspace.releases / "current"
    first, other = current.resolve(), other_release(server)
    names = {load_release(folder).id for folder in (first, other)}

    def promote() -> None:
        for number in range(50):
            link_atomically(current, other if number % 2 == 0 else first)
            time.sleep(0.4)

    watched = under_load(server, promote)
    check(server, "release promoted 50 times", watched)
    assert {json.loads(body)["release"] for _, _, body in watched.load.answers} == names


def test_damaged_releases_are_promoted(server: Server) -> None:
    current = server.workspace.releases / "current"
    first = current.resolve()
    good = server.serving()

    def promote() -> None:
        for number, damage in enumerate(DAMAGE.values()):
            folder = server.workspace.releases / f"damaged-{number}"
            shutil.copytree(first, folder)
            damage(folder)
            link_atomically(current, folder)
            time.sleep(1.5)
        link_atomically(current, first)

    watched = under_load(server, promote)
    check(server, f"{len(DAMAGE)} damaged releases", watched)
    assert {json.loads(body)["release"] for _, _, body in watched.load.answers} == {good}


CLOCK = """
import os, time
_real, _file = time.time, os.environ["FUNNEL_TEST_CLOCK"]
def _shifted():
    try:
        with open(_file) as file:
            return _real() + float(file.read() or 0)
    except (OSError, ValueError):
        return _real()
time.time = _shifted
"""


def test_the_clock_is_moved(server: Server, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(CLOCK)
    clock = tmp_path / "clock"
    with served(server.workspace, PYTHONPATH=str(tmp_path), FUNNEL_TEST_CLOCK=str(clock)) as moved:

        def move() -> None:
            for hours in (1, -1, 24, -24):
                clock.write_text(str(3_600 * hours))
                time.sleep(FAULT_S / 4)
            clock.write_text("0")

        check(moved, "clock moved by an hour and a day", under_load(moved, move))


def test_the_embedded_redis_is_there_at_the_end(server: Server) -> None:
    ensure_running(server.workspace.redis)
    with server.redis() as client:
        assert client.ping()
