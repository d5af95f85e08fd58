"""The other routes: events, items, users, probes and metrics. Handlers only translate."""

from __future__ import annotations

import asyncio
import re
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Path, Query, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import AfterValidator
from starlette.concurrency import run_in_threadpool

from serving.api.schemas import (
    EventBatch,
    EventReceipt,
    ItemChange,
    ItemUpdate,
    Liveness,
    Readiness,
    SimilarItemsResponse,
    UserFeaturesResponse,
)
from serving.engine import Engine
from serving.erasure import ErasureResponse
from serving.http.health import liveness, readiness
from serving.http.openapi import raw_body
from serving.observability.exposition import render


def _engine(request: Request) -> Engine:
    engine: Engine = request.app.state.engine
    return engine


UsesEngine = Annotated[Engine, Depends(_engine)]


def _decoded(name: str) -> str:
    """Refuse a path that was not UTF-8, in which U+FFFD stands for what could not be read.

    Several such paths would name one user.
    """
    if "\ufffd" in name:
        raise ValueError("the id in the path is not valid UTF-8")
    return name


def _not_blank(name: str) -> str:
    if not re.search(_VISIBLE, name):
        raise ValueError("the id is blank")
    return name


# Python and JSON Schema disagree on what \s is: what one of them leaves out is named.
_VISIBLE = r"[^\s\x85\x1c-\x1f\ufeff\ufffd]"
_DECODED = r"[^\ufffd]*"


def _path_id(pattern: str, example: str) -> Any:
    """Describe an id in a path; its pattern is for readers: the validators say what is wrong."""
    return Path(
        min_length=1,
        max_length=256,
        json_schema_extra={"pattern": f"^{pattern}$"},
        openapi_examples={"built-in world": {"value": example}},
    )


ItemId = Annotated[str, _path_id(_DECODED, "i0007"), AfterValidator(_decoded)]
NewItemId = Annotated[
    str,
    _path_id(f"{_DECODED}{_VISIBLE}{_DECODED}", "i0007"),
    AfterValidator(_decoded),
    AfterValidator(_not_blank),
]
UserId = Annotated[str, _path_id(_DECODED, "u0042"), AfterValidator(_decoded)]


def add_routes(app: FastAPI) -> None:
    """Add the routes of events, items and users."""

    @app.post("/v1/events", status_code=202, tags=["events"])
    def send_events(request: EventBatch, engine: UsesEngine) -> EventReceipt:
        """Append events to the log; they are durable when the answer comes.

        Each event is checked by itself: one that is rejected does not stop the others.
        """
        return engine.accept(request.events)

    @app.get("/v1/items/{item_id:path}/similar", tags=["recommendations"])
    def similar_items(
        item_id: ItemId, engine: UsesEngine, k: Annotated[int, Query(ge=1, le=500)] = 20
    ) -> SimilarItemsResponse:
        """Return items like another one: seen by the same users first, then the nearest vectors."""
        return engine.similar(item_id, k)

    @app.put(
        "/v1/items/{item_id:path}",
        status_code=202,
        tags=["items"],
        openapi_extra=raw_body(ItemUpdate, required=False),
    )
    async def put_item(item_id: NewItemId, request: Request, engine: UsesEngine) -> ItemChange:
        """Add an item that the release does not have, or restore a removed one (without a body).

        All servers recommend it within a second.
        """
        body = await request.body()
        if body:
            item = ItemUpdate.model_validate_json(body)
            changed = await run_in_threadpool(engine.add_item, item_id, item)
        else:
            changed = await run_in_threadpool(engine.restore_item, item_id)
        return ItemChange(item_id=item_id, changed=changed)

    @app.delete("/v1/items/{item_id:path}", status_code=202, tags=["items"])
    def remove_item(item_id: ItemId, engine: UsesEngine) -> ItemChange:
        """Stop recommending an item, on all servers within a second."""
        return ItemChange(item_id=item_id, changed=engine.remove_item(item_id))

    @app.get("/v1/users/{user_id:path}/features", tags=["users"])
    def user_features(user_id: UserId, engine: UsesEngine) -> UserFeaturesResponse:
        """Return the features of a user in the online store, with events of the last seconds."""
        features = engine.user_features(user_id)
        return UserFeaturesResponse(
            user_id=user_id,
            known=features.known,
            features={name: values[0] for name, values in features.columns.items()},
        )

    @app.delete("/v1/users/{user_id:path}", status_code=202, tags=["users"])
    def erase_user(user_id: UserId, engine: UsesEngine) -> ErasureResponse:
        """Forget a user: nothing of them is served or accepted from now on.

        `funnel erase` removes what lies in files.
        """
        return engine.erase(user_id)


def add_operation_routes(app: FastAPI) -> None:
    """Add probes and metrics, which wait for nothing that a request may wait for."""
    scrapes = ThreadPoolExecutor(1, "metrics")

    @app.get("/healthz", tags=["operations"])
    async def healthz() -> Liveness:
        """Say that the process runs; restart it if this does not answer."""
        return liveness()

    @app.get(
        "/readyz",
        tags=["operations"],
        response_model=Readiness,
        responses={503: {"model": Readiness}},
    )
    async def readyz(request: Request) -> Response:
        """Say whether this server takes requests, and what its answers lack."""
        state = request.app.state
        engine = getattr(state, "engine", None)
        status, body = readiness(engine, state.stream.latest, time.time(), stopping=state.draining)
        return JSONResponse(body, status)

    @app.get("/metrics", response_class=PlainTextResponse, tags=["operations"])
    async def metrics(request: Request) -> Response:
        """Return the metrics of all workers in Prometheus's text format."""
        # In a thread of its own: the others may all wait for Redis.
        text = await asyncio.get_running_loop().run_in_executor(
            scrapes, render, request.app.state.metrics
        )
        return Response(text, media_type=CONTENT_TYPE_LATEST)
