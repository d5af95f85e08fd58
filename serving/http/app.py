"""The HTTP API over one engine: its state, its middleware and its routes put together."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from feature_repo.periodic import PeriodicTask
from feature_repo.settings import read_settings
from feature_repo.workspace import Workspace
from serving.counters import CounterFiles
from serving.engine import Engine
from serving.event_log.stream_state import StreamStatePoller
from serving.http.docs import add_docs
from serving.http.executors import LoopExecutor, WorkerPool
from serving.http.keys import KeyRing
from serving.http.middleware import install, middleware
from serving.http.openapi import PROBLEMS, describe, stamp_examples
from serving.http.problem_details import handle_framework_error
from serving.http.recommendation_routes import BATCH, RECOMMEND, add_recommendation_routes
from serving.http.routes import add_operation_routes, add_routes
from serving.http.telemetry import start_tracing
from serving.observability.metrics import Metrics
from serving.releases.manifest import BadRelease
from serving.releases.poller import ReleasePoller
from serving.releases.release import Release
from serving.releases.verify import check_release, registered_features

_RECALL_S = 30.0
_CHANGES_S = 0.5
_MAX_PENDING = 8


def create_app(
    workspace: Workspace,
    release: Release,
    keys: KeyRing | None = None,
    *,
    counters: CounterFiles | None = None,
    follow: bool = False,
) -> FastAPI:
    """Return the API over one release.

    Args:
        workspace: the working folder, for the online store.
        release: the release to begin with.
        keys: API keys; None: everybody may do everything.
        counters: where another process keeps the item counters; None: they are read once.
        follow: serve what ``releases/current`` points at later on.

    """
    settings = read_settings()
    tracing = start_tracing()
    metrics = Metrics(tracing.span if tracing else None)
    stream = StreamStatePoller(workspace)
    metrics.at_scrape.append(stream)
    pool = WorkerPool(_MAX_PENDING, metrics.shed.inc)
    deadline_s = settings.deadline_ms / 1_000
    # What waits longer than half of its time would be answered late.
    executor = LoopExecutor(settings.under_way, deadline_s / 2, metrics.shed.inc)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        engine = app.state.engine = Engine(
            release, workspace, settings=settings, metrics=metrics, counters=counters
        )
        poller = ReleasePoller(workspace, release, engine.adopt, check=_checked(workspace, metrics))
        if follow:
            poller.start()
        tasks = [
            stream.start(),
            PeriodicTask(settings.refresh_s, engine.refresh_items, "refresh"),
            PeriodicTask(_CHANGES_S, engine.refresh_changes, "changes"),
            PeriodicTask(_RECALL_S, engine.measure_recall, "recall"),
        ]
        gc.collect()
        gc.freeze()  # what is loaded stays: a full collection would only delay requests
        yield
        poller.close()
        for task in tasks:
            task.close()
        pool.close()
        engine.close()
        if tracing:
            tracing.close()

    app = FastAPI(
        title="Funnel",
        lifespan=lifespan,
        docs_url=None,  # FastAPI's page loads scripts from elsewhere
        redoc_url=None,
        responses=PROBLEMS,
        generate_unique_id_function=_operation_id,
        exception_handlers={
            HTTPException: handle_framework_error,
            RequestValidationError: handle_framework_error,
        },
    )
    app.state.draining = False
    app.state.metrics = metrics
    app.state.stream = stream

    fast_routes = add_recommendation_routes(app, executor, pool, deadline_s=deadline_s)
    add_routes(app)
    add_operation_routes(app)
    add_docs(app)
    document = cache(lambda: describe(app, release, keys_required=keys is not None))
    app.openapi = lambda: stamp_examples(document(), datetime.now(UTC))  # type: ignore[method-assign]
    layers = middleware(
        executors={RECOMMEND: executor, BATCH: pool},
        fast_routes=fast_routes,
        keys=keys,
        metrics=metrics,
        tracing=tracing,
        origins=settings.cors_origins,
        hosts=settings.allowed_hosts,
    )
    install(app, layers)
    return app


def _operation_id(route: APIRoute) -> str:
    """Return the name of a route's handler, which generated clients call their methods."""
    return route.name


def _checked(workspace: Workspace, metrics: Metrics) -> Callable[[Path], Release]:
    """Return the check that a release must pass before it is served; refusals are counted."""

    def check(folder: Path) -> Release:
        try:
            return check_release(folder, registered_features(workspace))
        except BadRelease:
            metrics.refused.inc()
            raise

    return check
