"""The HTTP API. Handlers only translate; what they say comes from the engine."""

from __future__ import annotations

import gc
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import orjson
from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi import Path as PathPart
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from feature_repo.workspace import Workspace
from serving.api.openapi import described
from serving.api.problems import MEDIA_TYPE, PROBLEM_SCHEMA, problem
from serving.api.schemas import (
    EventBatch,
    EventReceipt,
    ItemChange,
    ItemUpdate,
    RecommendationBatchRequest,
    RecommendationBatchResponse,
    RecommendationRequest,
    RecommendationResponse,
    SimilarItemsResponse,
    UserFeaturesResponse,
)
from serving.counters import CounterFiles, PeriodicTask
from serving.engine import Engine
from serving.erasure import ErasureResponse
from serving.event_log.stream_state import StreamStatePoller
from serving.http.access import Access
from serving.http.errors import add_errors
from serving.http.executors import LoopExecutor, WorkerPool
from serving.http.headers import POLICY, ResponseHeaders, allowed_origins
from serving.http.health import liveness, readiness
from serving.http.keys import KeyRing
from serving.http.telemetry import Telemetry, start_tracing
from serving.observability.exposition import render
from serving.observability.metrics import Metrics
from serving.recommender.deadline import Deadline
from serving.releases.poller import ReleasePoller
from serving.releases.release import BadRelease, Release
from serving.releases.verify import check_release, registered_features
from serving.settings import ServeSettings

_RECALL_S, _CHANGES_S, _ASIDE = 30.0, 0.5, 8
_PROBLEMS: dict[int | str, dict[str, Any]] = dict.fromkeys(
    ("4XX", "5XX"),
    {
        "description": "Problem details (RFC 9457)",
        "content": {MEDIA_TYPE: {"schema": PROBLEM_SCHEMA}},
    },
)
RECOMMEND, BATCH = "/v1/recommendations", "/v1/recommendations:batch"


def _engine(request: Request) -> Engine:
    engine: Engine = request.app.state.engine
    return engine


UsesEngine = Annotated[Engine, Depends(_engine)]


def create_app(
    workspace: Workspace,
    release: Release,
    keys: KeyRing | None = None,
    counters: CounterFiles | None = None,
    follow: bool = False,
) -> FastAPI:
    """Return the API over one release.

    Args:
        workspace: the working folder, for the online store.
        release: the release to begin with.
        keys: API keys; None: everybody may do everything.
        counters: where another process keeps the item counters; None: they are read once.
        follow: take into service what ``releases/current`` points at later on.

    """
    settings = ServeSettings()
    tracing = start_tracing()
    metrics = Metrics(tracing.span if tracing else None)
    stream = StreamStatePoller(workspace)
    metrics.at_scrape.append(stream)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        engine = app.state.engine = Engine(
            release, workspace, settings=settings, metrics=metrics, counters=counters
        )
        refresh = PeriodicTask(settings.refresh_s, engine.refresh_items, "refresh")
        changes = PeriodicTask(_CHANGES_S, engine.refresh_changes, "changes")
        recall = PeriodicTask(_RECALL_S, engine.measure_recall, "recall")
        aside = WorkerPool(_ASIDE)
        app.state.queues = {RECOMMEND: LoopExecutor(settings.under_way), BATCH: aside}
        poller = ReleasePoller(workspace, release, engine.adopt, _counted(workspace, metrics))
        if follow:
            poller.start()
        gc.collect()
        gc.freeze()  # what is loaded stays: a full collection would only stop requests for its time
        yield
        poller.close()
        refresh.close()
        recall.close()
        changes.close()
        aside.close()
        engine.close()
        if tracing:
            tracing.close()

    app = FastAPI(
        title="Funnel", lifespan=lifespan, docs_url="/docs", redoc_url=None, responses=_PROBLEMS
    )
    app.state.draining, app.state.metrics, app.state.stream = False, metrics, stream
    app.state.queues = {}
    add_errors(app)
    _add_recommendations(
        app,
        settings,
        described(RecommendationRequest, release),
        described(RecommendationBatchRequest, release),
    )
    app.add_middleware(Access, keys=keys, origins=allowed_origins())
    app.add_middleware(
        Telemetry, metrics=metrics, tracing=tracing
    )  # outside of what it is to see the answers of
    app.add_middleware(Gate, state=app.state)
    _add_routes(app, described(ItemUpdate, release, required=False))
    _add_operations(app)
    return app


def _counted(workspace: Workspace, metrics: Metrics) -> Callable[[Path], Release]:
    """Return the check of a release to be served; what it refuses is counted."""

    def check(folder: Path) -> Release:
        try:
            return check_release(folder, registered_features(workspace))
        except BadRelease:
            metrics.refused.inc()
            raise

    return check


class Gate:
    """The outermost middleware: refuses what cannot be taken before anything is done for it, and drains at the end.

    A refusal costs a tenth of a request that goes through the others, so that many of them do not
    keep a server from answering those that it has accepted. Once the process is to end, every
    answer closes its connection, so that none is cut in use.
    """

    def __init__(self, app: ASGIApp, state: Any) -> None:
        self._app, self._state = app, state
        self._full = problem(
            503, "too many requests at once", "nothing was done for this one; send it again"
        )
        length = str(len(self._full)).encode()
        own = [
            (b"content-type", MEDIA_TYPE.encode()),
            (b"content-length", length),
            (b"retry-after", b"1"),
        ]
        self._headers = [*own, *ResponseHeaders(POLICY, ()).to(None)]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        queue = self._state.queues.get(scope["path"]) if scope["type"] == "http" else None
        if queue is not None and queue.full and scope["method"] == "POST":
            self._state.metrics.shed.inc()
            await send({"type": "http.response.start", "status": 503, "headers": self._headers})
            await send({"type": "http.response.body", "body": self._full})
        elif self._state.draining:
            await self._app(scope, receive, _closing(send))
        else:
            await self._app(scope, receive, send)


class Shortcut:
    """The innermost middleware: takes one route's requests past FastAPI's routing, which takes as long as a stage."""

    def __init__(
        self, app: ASGIApp, route: Any, endpoint: Callable[[Request], Awaitable[Response]]
    ) -> None:
        self._app, self._route, self._endpoint = app, route, endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if (
            scope["type"] != "http"
            or scope["path"] != self._route.path
            or scope["method"] != "POST"
        ):
            await self._app(scope, receive, send)
            return
        scope["route"] = self._route
        request = Request(scope, receive)
        try:
            response = await self._endpoint(request)
        except Exception as error:
            handler = request.app.exception_handlers.get(type(error))
            if handler is None:
                raise
            response = await handler(request, error)
        await response(scope, receive, send)


def _closing(send: Send) -> Send:
    async def last(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
        await send(message)

    return last


def _add_recommendations(
    app: FastAPI, settings: ServeSettings, one: dict[str, Any], many: dict[str, Any]
) -> None:
    """Add the routes that are to be fast: FastAPI describes them, but neither reads bodies nor checks answers."""

    async def recommendations(request: Request) -> Response:
        deadline = Deadline(settings.deadline_ms / 1_000, perf_counter())
        asked = RecommendationRequest.model_validate_json(await request.body())
        state = request.app.state
        queue = state.queues[
            BATCH if asked.explain else RECOMMEND
        ]  # explaining takes longer than recommending
        return _json(await queue.run(_recommended, state.engine, asked, deadline))

    app.post(RECOMMEND, responses={200: {"model": RecommendationResponse}}, openapi_extra=one)(
        recommendations
    )
    app.add_middleware(Shortcut, route=app.router.routes[-1], endpoint=recommendations)

    @app.post(BATCH, responses={200: {"model": RecommendationBatchResponse}}, openapi_extra=many)
    async def recommendations_batch(request: Request) -> Response:
        asked = RecommendationBatchRequest.model_validate_json(await request.body())
        state = request.app.state
        return _json(await state.queues[BATCH].run(_batch, state.engine, asked))


def _recommended(engine: Engine, asked: RecommendationRequest, deadline: Deadline) -> bytes:
    return orjson.dumps(engine.recommend(asked, deadline))


def _batch(engine: Engine, asked: RecommendationBatchRequest) -> bytes:
    return orjson.dumps(
        RecommendationBatchResponse(responses=engine.recommend_many(asked.requests))
    )


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")


def _add_routes(app: FastAPI, item: dict[str, Any]) -> None:
    @app.post("/v1/events", status_code=202)
    def events(request: EventBatch, engine: UsesEngine) -> EventReceipt:
        return engine.accept(request.events)

    @app.get("/v1/items/{item_id:path}/similar")
    def similar(
        item_id: str, engine: UsesEngine, k: Annotated[int, Query(ge=1, le=500)] = 20
    ) -> SimilarItemsResponse:
        return engine.similar(item_id, k)

    @app.delete("/v1/items/{item_id:path}", status_code=202)
    def remove_item(item_id: str, engine: UsesEngine) -> ItemChange:
        return ItemChange(item_id=item_id, changed=engine.remove_item(item_id))

    @app.put("/v1/items/{item_id:path}", status_code=202, openapi_extra=item)
    async def put_item(
        item_id: Annotated[str, PathPart(min_length=1, max_length=256)],
        request: Request,
        engine: UsesEngine,
    ) -> ItemChange:
        body = await request.body()
        if not body:
            return ItemChange(
                item_id=item_id, changed=await run_in_threadpool(engine.restore_item, item_id)
            )
        added = ItemUpdate.model_validate_json(body)
        return ItemChange(
            item_id=item_id, changed=await run_in_threadpool(engine.add_item, item_id, added)
        )

    @app.get("/v1/users/{user_id:path}/features")
    def user_features(user_id: str, engine: UsesEngine) -> UserFeaturesResponse:
        found = engine.user_features(user_id)
        return UserFeaturesResponse(
            user_id=user_id,
            known=found.known,
            features={name: values[0] for name, values in found.columns.items()},
        )

    @app.delete("/v1/users/{user_id:path}", status_code=202)
    def erase_user(user_id: str, engine: UsesEngine) -> ErasureResponse:
        return engine.erase(user_id)


def _add_operations(app: FastAPI) -> None:
    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return liveness()

    @app.get("/readyz")
    def readyz(request: Request) -> JSONResponse:
        state = request.app.state
        engine = getattr(state, "engine", None)
        status, body = readiness(engine, state.stream.poll(), time.time(), stopping=state.draining)
        return JSONResponse(body, status)

    @app.get("/metrics", response_class=PlainTextResponse)
    def metrics(request: Request) -> Response:
        return Response(render(request.app.state.metrics), media_type=CONTENT_TYPE_LATEST)
