"""The API over HTTP, each of its stages, and a straightforward server, in one run."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from rich.table import Table

from benchmarks.catalogue import copy_rows, expand
from benchmarks.live import free_port, running
from benchmarks.load import encode_requests, load
from benchmarks.naive import Naive
from benchmarks.overload import family, overload
from feature_repo import columns as c
from feature_repo.arrays import Float32Array
from feature_repo.stores.feature_store import feature_store, redis_client
from feature_repo.workspace import Workspace
from pipelines import display
from pipelines.ingest.ingested import read_events
from pipelines.training.release_pointer import current_release
from pipelines.workflow.demo import FULL, run_demo
from serving.api.schemas import RecommendationRequest
from serving.engine import Engine
from serving.recommender.candidates import CandidateQuota
from serving.recommender.filters import RequestRules
from serving.releases.release import load_release

K = 20
_USERS = 1_000
_WARM_UP = 100


class Stopwatch:
    """Every time of every stage, in milliseconds."""

    def __init__(self) -> None:
        self.times: dict[str, list[float]] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time a block."""
        start = time.perf_counter()
        yield
        self.times.setdefault(name, []).append((time.perf_counter() - start) * 1_000)

    def percentiles(self, name: str) -> tuple[float, float]:
        """Return p50 and p99."""
        p50, p99 = np.percentile(self.times[name], [50, 99])
        return round(float(p50), 3), round(float(p99), 3)


def run(
    root: Path, *, items: int, candidates: int, seconds: float, workers: int, naive: int
) -> dict[str, Any]:
    """Measure and return the figures.

    Args:
        root: folder of the trained world that the catalogue is made from; trained if it is not
            there.
        items: size of the catalogue.
        candidates: number that is ranked, about.
        seconds: duration of the load, on one connection and on sixteen.
        workers: number of server processes.
        naive: requests to the straightforward server; 0: none.

    """
    base = Workspace(root)
    if not (base.releases / "current").exists():
        run_demo("synthetic-full", None, root, FULL)
    with display.stage("Catalogue"):
        workspace = expand(base, items, two_tower=max(50, candidates - CandidateQuota().new))
    release = load_release(current_release(workspace))
    users = active_users(workspace)
    with display.stage("Items into Redis") as progress:
        if naive:
            copy_rows(workspace, release, progress)
    figures: dict[str, Any] = {"items": items, "ranker": release.recommender.ranker.kind}
    with display.stage("Stages"):
        figures |= _stages(workspace, users)
    with display.stage("HTTP"):
        figures |= _http(workspace, users, seconds, workers)
    if naive:
        with display.stage("Straightforward server"):
            figures |= _naive(workspace, users[:naive])
            figures["speedup"] = round(figures["naive_p50_ms"] / figures["p50_ms"], 1)
    return figures


def active_users(workspace: Workspace) -> list[str]:
    """Return the users of the newest positive events."""
    events = read_events(workspace, [c.USER, c.POSITIVE])
    newest = events.loc[events[c.POSITIVE], c.USER].iloc[::-1].drop_duplicates()
    return [str(user) for user in newest.iloc[:_USERS]]


def _requests(users: list[str]) -> list[bytes]:
    bodies = [json.dumps({"user_id": user, "k": K}).encode() for user in users]
    return encode_requests("/v1/recommendations", bodies)


def _http(workspace: Workspace, users: list[str], seconds: float, workers: int) -> dict[str, Any]:
    port = free_port()
    requests = _requests(users)
    start = time.perf_counter()
    command = [
        "serve",
        "--home",
        str(workspace.root),
        "--port",
        str(port),
        "--workers",
        str(workers),
    ]
    with running(command, workspace.root / "serve.log") as process:
        cold_s = ready(port) - start
        _wait_for_counters(port)
        load(port, requests, connections=4, seconds=3.0)
        alone = load(port, requests, connections=1, seconds=seconds)
        loaded = load(port, requests, connections=16, seconds=seconds)
        above = overload(port, requests, pid=process.pid, seconds=seconds)
        used = memory(process.pid)
    for one in (alone, loaded):
        if not set(one.statuses) <= {200, 503}:
            raise RuntimeError(f"some requests failed: {one.statuses}")
    return {
        "p50_ms": alone.percentile(50),
        "p99_ms": alone.percentile(99),
        "rps": loaded.rps,
        "p50_ms_loaded": loaded.percentile(50),
        "p99_ms_loaded": loaded.percentile(99),
        "shed_loaded": loaded.statuses[503],
        **above,
        "cold_start_s": round(cold_s, 1),
        "bytes_total": used["bytes"],
        "processes": used["processes"],
        "bytes_per_worker": used["bytes"] // used["processes"],
    }


def ready(port: int) -> float:
    """Wait until a server is ready and return when that was, by ``time.perf_counter``."""
    deadline = time.perf_counter() + 300
    while time.perf_counter() < deadline:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=5).status_code == 200:
                return time.perf_counter()
        except httpx.TransportError:
            time.sleep(0.05)
    raise RuntimeError("the server did not become ready; see serve.log in the catalogue's folder")


def _wait_for_counters(port: int) -> None:
    """Wait until the reader process has read the item counters, once after the start."""
    while httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=5).json()["items_age_s"] is None:
        time.sleep(0.2)


def memory(pid: int) -> dict[str, int]:
    """Return the memory of a server's processes together; shared pages count once.

    ``bytes``: all (PSS); ``anonymous``: without mapped files, whose part depends on who else on the
    machine maps them.
    """
    processes = family(pid)
    return {
        "bytes": sum(_proportional(one, "Pss:") for one in processes),
        "anonymous": sum(_proportional(one, "Pss_Anon:") for one in processes),
        "processes": len(processes),
    }


def _proportional(pid: int, what: str) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(what):
            return int(line.split()[1]) * 1024
    return 0


def _stages(workspace: Workspace, users: list[str]) -> dict[str, Any]:
    """Time the stages in this process, and their floors: the one library call of each."""
    engine = Engine(load_release(current_release(workspace)), workspace, log_impressions=False)
    stopwatch = Stopwatch()
    engine.metrics.stage = stopwatch  # type: ignore[method-assign,assignment]
    requests = [RecommendationRequest(user_id=user, k=K) for user in users]

    for request in requests[:_WARM_UP]:
        engine.recommend(request)
    gc.collect()
    gc.freeze()
    stopwatch.times.clear()
    for request in requests:
        with stopwatch("engine"):
            engine.recommend(request)
    floors, candidates = _floors(engine, users)
    gc.unfreeze()

    stages = {name: stopwatch.percentiles(name) for name in stopwatch.times}
    _show_stages(stages, floors, f"{len(engine.items) - 1:,} items, {candidates:.0f} candidates")
    engine.close()
    return {
        "candidates": round(candidates, 1),
        "stages_ms": stages,
        "floors_ms": {name: round(value, 3) for name, value in floors.items()},
    }


def _show_stages(
    stages: dict[str, tuple[float, float]], floors: dict[str, float], title: str
) -> None:
    table = Table(title=title, title_justify="left")
    for column in ("stage", "p50 ms", "p99 ms", "floor p50 ms"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for name, (p50, p99) in stages.items():
        floor = f"{floors[name]:.3f}" if name in floors else ""
        table.add_row(name, f"{p50:.3f}", f"{p99:.3f}", floor)
    display.console.print(table)


def _median_ms(work: Callable[[int], Any], times: int = 300) -> float:
    work(0)
    seconds = []
    for number in range(times):
        start = time.perf_counter()
        work(number)
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds)) * 1_000


def _floors(engine: Engine, users: list[str]) -> tuple[dict[str, float], float]:
    """Return the median time of each stage's one library call, and the mean number of candidates.

    The inputs are those of 100 real requests.
    """
    release = engine.release
    items = engine.items
    recommender = release.recommender
    online = engine.snapshot.online
    now = time.time()

    # Users, their vectors and candidates, and the ranker's rows of each request.
    features = [online.user(user, now).columns for user in users[:100]]
    batches = [release.reader.read(columns, np.array([now])) for columns in features]
    answers = [recommender.recommend_ranked(batch, [RequestRules(K)], items) for batch in batches]
    codes = [ranked.candidates.item for _, ranked, _ in answers]
    rows = [ranked.pairs[0].join(items.rows) for _, ranked, _ in answers]
    vectors = [vector for _, _, vector in answers]

    client = redis_client(engine.workspace)
    reader = online.row_reader
    keys = [reader.key(user) for user in users[:100]]
    index = recommender.retriever.index
    count = recommender.retriever.quota.two_tower
    ranker = recommender.ranker.ranker

    def gather(n: int) -> Float32Array:
        return items.rows.numeric[codes[n % 100]]

    medians = {
        "features": _median_ms(lambda n: client.hmget(keys[n % 100], reader.fields)),  # type: ignore[arg-type]
        "tower": _median_ms(lambda n: recommender.tower(batches[n % 100].context)),
        "retrieve": _median_ms(lambda n: index.search(vectors[n % 100], count)),
        "gather": _median_ms(gather),
        "rank": _median_ms(lambda n: ranker.predict(*rows[n % 100])),
    }
    return medians, float(np.mean([len(items_of_request) for items_of_request in codes]))


def _naive(workspace: Workspace, users: list[str]) -> dict[str, Any]:
    release = load_release(current_release(workspace))
    naive = Naive(release, feature_store(workspace))
    stopwatch = Stopwatch()
    naive.recommend(users[0], K)
    gc.collect()
    gc.freeze()
    for user in users:
        with stopwatch("naive"):
            naive.recommend(user, K)
    gc.unfreeze()
    p50, p99 = stopwatch.percentiles("naive")
    return {"naive_p50_ms": p50, "naive_p99_ms": p99}
