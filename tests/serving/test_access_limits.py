"""How much a caller may send, how often, and what asking costs."""

import asyncio
import re
import sys
import time
from datetime import UTC, datetime

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

from serving.http.access import AccessMiddleware, RateLimiter, load_keys
from serving.http.body_limit import BodyLimitMiddleware
from serving.http.keys import Key, KeyRing
from serving.http.problem_details import ProblemDetailsMiddleware
from tests.support.access_app import (
    Client,
    a_call,
    bearer,
    behind_middleware,
    coming,
    is_problem,
    parts,
)
from tests.support.forked import Forked
from tests.support.waiting import wait_until


def test_rate_limits_are_for_each_key(door, new_key):
    slow, fast = new_key("events", rate_limit=0.2), new_key("events")
    client = door()
    answers = [client.get("/openapi.json", headers=bearer(slow)) for _ in range(3)]
    assert [a.status_code for a in answers] == [200, 429, 429]
    assert is_problem(answers[1], 429) and 1 <= int(answers[1].headers["retry-after"]) <= 5
    assert all(
        client.get("/openapi.json", headers=bearer(fast)).status_code == 200 for _ in range(10)
    )


def test_a_bucket_gives_what_its_rate_says():
    def rated(rate):
        fields = {"id": "0" * 8, "sha256": "0" * 64, "name": "x", "scopes": ["events"]}
        return Key(**fields, created_at=datetime.now(UTC), rate_limit=rate)

    rates, ten, tenth = RateLimiter(), rated(10), rated(0.1)
    assert [rates.take(ten, 0.0) for _ in range(11)] == [0.0] * 10 + [0.1]
    assert rates.take(ten, 0.1) == 0.0 and rates.take(ten, 0.1) > 0
    passed = sum(rates.take(ten, 1 + fiftieth / 50) == 0 for fiftieth in range(5_000))
    assert 1_000 <= passed <= 1_010
    rates = RateLimiter()
    assert [rates.take(tenth, at) for at in (0.0, 4.0, 10.0)] == [0.0, pytest.approx(6.0), 0.0]


JSON = {"content-type": "application/json"}


@pytest.mark.parametrize("ring", [True, False])
def test_a_body_that_says_that_it_is_too_large(door, new_key, ring):
    headers = JSON | bearer(new_key("events"))
    client = door(ring, max_body=1_000)
    fits, more = b'"' + b"x" * 998 + b'"', b'"' + b"x" * 999 + b'"'
    assert client.post("/v1/events", content=fits, headers=headers).status_code == 422
    assert is_problem(client.post("/v1/events", content=more, headers=headers), 413)
    for length in ("9" * 15, "9" * 5_000):
        assert is_problem(
            client.post("/v1/events", content=b"", headers={**headers, "content-length": length}),
            413,
        )
    if ring:
        assert is_problem(client.post("/v1/events", content=more), 401)


def test_a_body_that_does_not_say_is_counted(door):
    client = door(ring=False, max_body=1_000)
    assert client.post("/v1/events", content=coming(parts(10)), headers=JSON).status_code == 422
    for count in (11, 1_000):
        answer = client.post("/v1/events", content=coming(parts(count)), headers=JSON)
        assert "content-length" not in answer.request.headers
        assert is_problem(answer, 413)


async def whole(request):
    return PlainTextResponse(f"{len(await request.body())}")


async def streamed(request):
    async def echo():
        async for part in request.stream():
            yield part

    return StreamingResponse(echo())


async def careless(request):
    try:
        await request.body()
    except Exception:
        return JSONResponse({"fine": True})


@pytest.mark.parametrize("handler", [whole, careless])
def test_no_framework_makes_another_answer_of_it(handler):
    app = Starlette(routes=[Route("/v1/x", handler, methods=["POST"])])
    client = Client(behind_middleware(app, max_body=1_000))
    assert is_problem(client.post("/v1/x", content=coming(parts(20)), headers=JSON), 413)


def test_a_response_that_has_begun_is_not_answered_twice():
    app = Starlette(routes=[Route("/v1/x", streamed, methods=["POST"])])
    sent, *call = a_call("/v1/x", parts(20))
    limited = ProblemDetailsMiddleware(BodyLimitMiddleware(app, limit=1_000))
    asyncio.run(asyncio.wait_for(limited(*call), 10))
    assert [message["type"] for message in sent].count("http.response.start") == 1
    assert len(sent) <= 11, "nothing came after the part that was too much"


def serve(keys_file):
    """Serve a route of events behind the real middleware; the first line printed is the port."""
    app = behind_middleware(FastAPI(), load_keys("127.0.0.1", keys_file))

    @app.post("/v1/events")
    def take(body: dict) -> int:
        return len(body)

    class Server(uvicorn.Server):
        async def startup(self, sockets=None):
            await super().startup(sockets)
            sys.stdout.write(f"port {self.servers[0].sockets[0].getsockname()[1]}\n")
            sys.stdout.flush()

    Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="debug")).run()


@pytest.fixture
def server(keys_file, new_key, tmp_path):
    text, log = new_key("events"), tmp_path / "server.log"
    process = Forked(serve, keys_file, out=log)
    try:
        wait_until(lambda: "\nport " in "\n" + log.read_text(), patience_s=60)
        port = re.search("^port (.*)$", log.read_text(), re.MULTILINE)[1]
        with httpx.Client(
            base_url=f"http://127.0.0.1:{port}", timeout=20, headers=bearer(text)
        ) as client:
            yield client, text
        process.terminate()
        process.wait(30)
        said = log.read_text()
        assert text.split("_", 2)[2] not in said
        assert "Traceback" not in said
    finally:
        process.kill()
        process.wait(30)


def test_huge_bodies_over_a_real_connection(server):
    client, _ = server
    huge = b" " * (16 * 1024 * 1024)
    assert is_problem(client.post("/v1/events", content=huge), 413)
    assert is_problem(client.post("/v1/events", content=parts(256, 65_536)), 413)
    assert is_problem(
        client.post("/v1/events", content=huge, headers={"authorization": "Bearer x"}), 401
    )
    assert client.post("/v1/events", json={"a": 1}).json() == 1


def test_its_own_time_is_small(keys_file, new_key):
    """Thirty microseconds are the budget; a busy machine is given ten times that."""
    text = new_key("recommend", rate_limit=1e6)

    async def nothing(_scope, receive, send):
        await receive()
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [(b"content-type", b"application/json")],
            }
        )
        await send({"type": "http.response.body", "body": b"{}"})

    async def receive():
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def send(_):
        pass

    names = (b"host", b"accept", b"accept-encoding", b"connection", b"user-agent", b"content-type")
    headers = [
        *((name, b"x") for name in names),
        (b"content-length", b"2"),
        (b"x-api-key", text.encode()),
    ]

    async def seconds(app, calls=2_000):
        start = time.perf_counter()
        for _ in range(calls):
            scope = {
                "type": "http",
                "method": "POST",
                "path": "/v1/recommendations",
                "headers": headers,
            }
            await app(scope, receive, send)
        return (time.perf_counter() - start) / calls

    async def best(app):
        return min([await seconds(app) for _ in range(3)])

    assert asyncio.run(best(AccessMiddleware(nothing, KeyRing(keys_file)))) < 300e-6
