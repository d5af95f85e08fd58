"""The routes that must be fast: FastAPI describes them, but parses and checks nothing."""

from __future__ import annotations

from collections.abc import Mapping
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
from serving.http.executors import Executor
from serving.http.fast_path import FastRoute
from serving.http.openapi import raw_body
from serving.recommender.deadline import Deadline

RECOMMEND = "/v1/recommendations"
BATCH = "/v1/recommendations:batch"


def add_recommendation_routes(
    app: FastAPI, executors: Mapping[str, Executor], *, deadline_s: float
) -> dict[str, FastRoute]:
    """Add the routes and return them by path, for the middleware that skips FastAPI's routing.

    Args:
        app: gets the routes.
        executors: where the work of each path runs.
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
        # An explanation takes longer than the recommendation, so it waits with the batches.
        executor = executors[BATCH if query.explain else RECOMMEND]
        return _json(await executor.run(_recommend, request.app.state.engine, query, deadline))

    @app.post(
        BATCH,
        tags=["recommendations"],
        responses={200: {"model": RecommendationBatchResponse}},
        openapi_extra=raw_body(RecommendationBatchRequest),
    )
    async def recommend_batch(request: Request) -> Response:
        """Answer up to 1,000 recommendation requests at once, in their order."""
        query = RecommendationBatchRequest.model_validate_json(await request.body())
        return _json(await executors[BATCH].run(_recommend_batch, request.app.state.engine, query))

    handlers = (recommend, recommend_batch)
    return {
        route.path: FastRoute(route, route.endpoint)
        for route in app.routes
        if isinstance(route, APIRoute) and route.endpoint in handlers
    }


def _recommend(engine: Engine, query: RecommendationRequest, deadline: Deadline) -> bytes:
    return orjson.dumps(engine.recommend(query, deadline))


def _recommend_batch(engine: Engine, query: RecommendationBatchRequest) -> bytes:
    responses = engine.recommend_many(query.requests)
    return orjson.dumps(RecommendationBatchResponse(responses=responses))


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")
