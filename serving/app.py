"""The HTTP API. Handlers only translate; what they say comes from the engine."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from feature_repo.workspace import Workspace
from serving.engine import Engine, UnknownItem
from serving.events import LogFull
from serving.filters import UnknownAttribute
from serving.online import OnlineStoreUnavailable
from serving.release import load_release
from serving.schemas import (
    EventsRequest,
    EventsResponse,
    RecommendationRequest,
    RecommendationResponse,
    SimilarResponse,
    UserFeaturesResponse,
)


def _engine(request: Request) -> Engine:
    engine: Engine = request.app.state.engine
    return engine


UsesEngine = Annotated[Engine, Depends(_engine)]


def create_app(workspace: Workspace, release: Path) -> FastAPI:
    """Return the API over one release; it is loaded when the app starts.

    Args:
        workspace: the working folder, for the online store.
        release: the release's folder.

    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        engine = app.state.engine = Engine(load_release(release), workspace)
        gc.collect()
        gc.freeze()  # what is loaded stays: a full collection would only stop requests for its time
        yield
        engine.close()

    app = FastAPI(title="Funnel", lifespan=lifespan, docs_url="/docs", redoc_url=None)
    _add_errors(app)
    _add_routes(app)
    _add_operations(app)
    return app


def _add_routes(app: FastAPI) -> None:
    @app.post("/v1/recommendations", response_model_exclude_none=True)
    def recommendations(request: RecommendationRequest, engine: UsesEngine) -> RecommendationResponse:
        return engine.recommend(request)

    @app.post("/v1/events", status_code=202)
    def events(request: EventsRequest, engine: UsesEngine) -> EventsResponse:
        return engine.accept(request.events)

    @app.get("/v1/items/{item_id:path}/similar", response_model_exclude_none=True)
    def similar(item_id: str, engine: UsesEngine, k: Annotated[int, Query(ge=1, le=500)] = 20) -> SimilarResponse:
        return engine.similar(item_id, k)

    @app.get("/v1/users/{user_id:path}/features")
    def user_features(user_id: str, engine: UsesEngine) -> UserFeaturesResponse:
        found = engine.user_features(user_id)
        return UserFeaturesResponse(
            user_id=user_id, known=found.known, features={name: values[0] for name, values in found.columns.items()}
        )


def _add_operations(app: FastAPI) -> None:
    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz")
    def readyz(engine: UsesEngine) -> JSONResponse:
        redis = engine.online.ping()
        status = "ready" if redis else "degraded: online store unavailable"
        return JSONResponse({"status": status, "release": engine.release.id, "online_store": redis})

    @app.get("/metrics")
    def metrics(engine: UsesEngine) -> Response:
        return Response(generate_latest(engine.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.middleware("http")
    async def count(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await call_next(request)
        route = request.scope.get("route")
        path = getattr(route, "path", "unknown")
        request.app.state.engine.metrics.requests.labels(path, response.status_code).inc()
        return response


def _problem(status: int, title: str, detail: Any) -> JSONResponse:
    """Return problem details (RFC 9457)."""
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail}
    return JSONResponse(body, status_code=status, media_type="application/problem+json")


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        problems = [f"{'.'.join(map(str, p['loc']))}: {p['msg']}" for p in error.errors()]
        return _problem(422, "the request does not fit its schema", "; ".join(problems))

    @app.exception_handler(UnknownAttribute)
    async def unknown_attribute(_: Request, error: UnknownAttribute) -> JSONResponse:
        return _problem(422, "the filters cannot be applied", str(error))

    @app.exception_handler(UnknownItem)
    async def unknown_item(_: Request, error: UnknownItem) -> JSONResponse:
        return _problem(404, "no such item", f"this release has no item '{error}'")

    @app.exception_handler(LogFull)
    async def log_full(_: Request, error: LogFull) -> JSONResponse:
        response = _problem(429, "the event log is full", f"no event of the request was taken; send it again ({error})")
        response.headers["Retry-After"] = "5"
        return response

    @app.exception_handler(OnlineStoreUnavailable)
    async def no_store(_: Request, error: OnlineStoreUnavailable) -> JSONResponse:
        response = _problem(503, "the online store does not answer", f"try again soon ({error})")
        response.headers["Retry-After"] = "1"
        return response
