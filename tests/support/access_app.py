"""A small app behind the real middleware, and a client of it."""

import asyncio
from functools import partialmethod

import httpx
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from serving.http.docs import add_docs
from serving.http.middleware import install, middleware
from serving.http.problem_details import handle_framework_error
from serving.observability.metrics import Metrics

SAFE = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
}
SHOP = "https://shop.example"


class Client:
    """A client of an app in this process that can be called without await."""

    def __init__(self, app, **options):
        self._transport = httpx.ASGITransport(app, raise_app_exceptions=False, **options)

    def request(self, *arguments, **options):
        return asyncio.run(self._request(*arguments, **options))

    async def _request(self, *arguments, **options):
        async with httpx.AsyncClient(
            transport=self._transport, base_url="http://localhost"
        ) as client:
            return await client.request(*arguments, **options)

    get, post, delete = (
        partialmethod(request, "GET"),
        partialmethod(request, "POST"),
        partialmethod(request, "DELETE"),
    )
    head, options = partialmethod(request, "HEAD"), partialmethod(request, "OPTIONS")


def an_app():
    handlers = dict.fromkeys((HTTPException, RequestValidationError), handle_framework_error)
    app = FastAPI(title="small", docs_url=None, redoc_url=None, exception_handlers=handlers)
    add_docs(app)

    @app.post("/v1/recommendations")
    @app.post("/v1/events")
    @app.post("/v1/admin/reload")
    def take(body: dict) -> int:
        return len(body)

    @app.get("/v1/items/{item_id:path}/similar")
    @app.get("/v1/users/{user_id:path}/features")
    @app.delete("/v1/users/{user_id:path}")
    @app.get("/healthz")
    @app.get("/readyz")
    @app.get("/metrics")
    def give() -> str:
        return "given"

    @app.get("/v1/items/broken")
    def fail() -> str:
        raise RuntimeError("a secret of the server")

    @app.middleware("http")
    async def wrap(request, call_next):  # the API has such a one inside
        return await call_next(request)

    return app


def behind_middleware(app, keys=None, **options):
    """Put the product's middleware around an app."""
    app.state.draining = False
    layers = middleware(executors={}, fast_routes={}, keys=keys, metrics=Metrics(), **options)
    install(app, layers)
    return app


def bearer(key):
    return {"authorization": f"Bearer {key}"}


def is_problem(answer, status):
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json().keys() == {"type", "title", "status", "detail"}
    assert answer.json()["status"] == status
    assert answer.headers["content-length"] == str(len(answer.content))
    assert SAFE.keys() <= answer.headers.keys()
    return True


def parts(count, size=100):
    for _ in range(count):
        yield b" " * size


async def coming(those):
    for part in those:
        yield part


def a_call(path, body=(), kind="http"):
    """Return what was sent, and what an ASGI app is called with."""
    sent, received = [], iter(body)

    async def receive():
        return {"type": "http.request", "body": next(received, b""), "more_body": True}

    async def send(message):
        sent.append(message)

    method = "POST" if body else "GET"
    scope = {
        "type": kind,
        "method": method,
        "path": path,
        "headers": [],
        "query_string": b"",
        "asgi": {},
    }
    return sent, scope, receive, send
