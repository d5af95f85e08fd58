"""The routes that must be fast: FastAPI describes them, but parses and checks nothing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import perf_counter

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.routing import APIRoute

from serving.api.schemas import (
    RecommendationBatchRequest,
    RecommendationBatchResponse,
    RecommendationRequest,
    RecommendationResponse,
)
from serving.engine import Engine
from serving.http.executors import LoopExecutor, WorkerPool
from serving.http.fast_path import FastRoute
from serving.http.openapi import raw_body
from serving.recommender.deadline import Deadline

RECOMMEND = "/v1/recommendations"
BATCH = "/v1/recommendations:batch"


def add_recommendation_routes(
    app: FastAPI, executor: LoopExecutor, pool: WorkerPool, *, deadline_s: float
) -> dict[str, FastRoute]:
    """Add the routes and return them by path, for the middleware that skips FastAPI's routing.

    Args:
        app: gets the routes.
        executor: runs recommendations.
        pool: runs what takes longer: batches and explanations.
        deadline_s: seconds within which a recommendation should be answered.

    """

    @app.post(
        RECOMMEND,
        tags=["recommendations"],
        responses={200: {"model": RecommendationResponse}},
        openapi_extra=raw_body(RecommendationRequest),
    )
    async def recommend(request: Request) -> Response:
        """Recommend items to one user, the best first.

        A late stage is left out; `degraded` names each loss of quality.
        """
        deadline = Deadline(deadline_s, perf_counter())
        query = RecommendationRequest.model_validate_json(await request.body())
        engine: Engine = request.app.state.engine
        if not query.explain:
            return _json(await executor.run(_recommend, engine, query, deadline, deadline=deadline))
        async with _until_gone(request) as gone:
            return _json(await pool.run(_explain, engine, query, gone))

    @app.post(
        BATCH,
        tags=["recommendations"],
        responses={200: {"model": RecommendationBatchResponse}},
        openapi_extra=raw_body(RecommendationBatchRequest),
    )
    async def recommend_batch(request: Request) -> Response:
        """Answer up to 1,000 recommendation requests at once, in their order.

        They may ask for up to 20,000 items in all, and up to 50 of them for explanations.
        """
        query = RecommendationBatchRequest.model_validate_json(await request.body())
        async with _until_gone(request) as gone:
            return _json(await pool.run(_recommend_batch, request.app.state.engine, query, gone))

    handlers = (recommend, recommend_batch)
    return {
        route.path: FastRoute(route, route.endpoint)
        for route in app.routes
        if isinstance(route, APIRoute) and route.endpoint in handlers
    }


@asynccontextmanager
async def _until_gone(request: Request) -> AsyncIterator[threading.Event]:
    """Give an event that is set when the client closes the connection before its answer."""
    gone = threading.Event()

    async def watch() -> None:
        await request.receive()  # the body has been read: what comes next is the end
        gone.set()

    watching = asyncio.create_task(watch())
    try:
        yield gone
    finally:
        watching.cancel()


def _recommend(engine: Engine, query: RecommendationRequest, deadline: Deadline) -> bytes:
    return orjson.dumps(engine.recommend(query, deadline))


def _explain(engine: Engine, query: RecommendationRequest, gone: threading.Event) -> bytes:
    return orjson.dumps(engine.recommend_many([query], gone.is_set)[0])


def _recommend_batch(
    engine: Engine, query: RecommendationBatchRequest, gone: threading.Event
) -> bytes:
    responses = engine.recommend_many(query.requests, gone.is_set)
    return orjson.dumps(RecommendationBatchResponse(responses=responses))


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")
