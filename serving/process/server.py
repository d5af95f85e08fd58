"""``funnel serve``: a release loaded once, and served by forked workers that share its memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from fastapi import FastAPI

from feature_repo.stores.feature_store import redis_url
from feature_repo.workspace import Workspace
from serving.counters import CounterFiles, CounterReader
from serving.http.access import load_keys
from serving.http.app import create_app
from serving.impression_keeper import ImpressionKeeper
from serving.observability.logs import setup_logging
from serving.process.listener import listen
from serving.process.supervisor import run_workers
from serving.releases.poller import ReleasePoller
from serving.releases.release import Release
from serving.releases.verify import check_release, registered_features

_POLL_S = 1.0


def serve(
    workspace: Workspace,
    folder: Path,
    address: tuple[str, int],
    *,
    workers: int = 1,
    started: Callable[[], None] = lambda: None,
) -> None:
    """Serve a release until SIGTERM or SIGINT.

    Args:
        workspace: the working folder.
        folder: the release to begin with.
        address: host and port to listen on.
        workers: processes that answer requests.
        started: called once when all of them can be asked.

    Raises:
        BadRelease: the release cannot be served.
        RedisFailed: the embedded Redis did not start.
        NoKeys: others than this machine can reach the host, and there are no API keys.
        PortTaken: another process listens there.
        WorkerFailed: a worker could not start.

    """
    setup_logging()
    keys = load_keys(address[0], workspace.root / "keys.json")
    release = check_release(folder, registered_features(workspace))
    release.recommender.prepare(release.items)
    files = CounterFiles(workspace.root / "serving" / "counters")
    redis_url(workspace)  # an embedded Redis is held by this process, so that it ends with it

    def create() -> FastAPI:
        return create_app(workspace, release, keys, counters=files, follow=True)

    run_workers(
        create,
        listen(address),
        workers,
        helper=lambda: _read_counters(workspace, release, files),
        started=started,
    )


def _read_counters(workspace: Workspace, release: Release, files: CounterFiles) -> None:
    """Read item counters for all workers, and follow the release that they serve; never returns."""
    reader = CounterReader(workspace, files)
    served = release

    def adopt(promoted: Release) -> None:
        nonlocal served
        served = promoted

    impressions = ImpressionKeeper(workspace)
    poller = ReleasePoller(workspace, release, adopt)
    while True:
        poller.poll()
        reader.step(served)
        impressions.step()
        time.sleep(_POLL_S)
