"""The app's outermost layer, over ASGI and in a real server, with a real collector of traces."""

import asyncio
import io
import json
import logging
import re
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from feature_repo.settings import SettingsError
from feature_repo.workspace import PROJECT_ROOT
from serving.http.problem_details import ProblemDetailsMiddleware
from serving.http.telemetry import TelemetryMiddleware, start_tracing
from serving.observability.logs import note, setup_logging
from serving.observability.metrics import Metrics

USER = "user-0451"
_log = logging.getLogger("serving.test")


def make_app(metrics, tracing=None):
    app = FastAPI()
    app.add_middleware(ProblemDetailsMiddleware)
    app.add_middleware(TelemetryMiddleware, metrics=metrics, tracing=tracing)

    @app.get("/v1/users/{user_id}/features")
    def features(user_id: str, request: Request):
        note(answer="a1", degraded=["no_history"])
        _log.warning("looked at a user")
        with metrics.stage("features"), metrics.stage("rank"):
            return {"user_id": user_id, "request_id": request.state.request_id}

    @app.get("/fails")
    def fails():
        with metrics.stage("rank"):
            raise LookupError("a secret")

    @app.get("/half")
    async def half():
        async def parts():
            yield b"one"
            raise LookupError("a secret")

        return StreamingResponse(parts())

    @app.get("/waits")
    async def waits():
        await asyncio.sleep(30)

    @app.get("/busy")
    async def busy():
        return JSONResponse({}, 503)

    @app.get("/healthz")
    async def healthz():
        return {"in_flight": metrics.in_flight._value.get()}

    return app


def ask(app, path, **headers):
    async def once():
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.get(path, headers=headers)

    return asyncio.run(once())


@pytest.fixture
def metrics():
    return Metrics()


@pytest.fixture
def app(metrics):
    return make_app(metrics)


@pytest.fixture
def logs(monkeypatch):
    """Return a way to set logging up as the environment says.

    It returns the lines so far when called.
    """
    root, access = logging.getLogger(), logging.getLogger("uvicorn.access")
    monkeypatch.setattr(root, "handlers", [])  # pytest's own must not be closed
    level = root.level

    def start(**environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        stream = io.StringIO()
        setup_logging(stream)
        return lambda: stream.getvalue().split("\n")[:-1]

    clients = (
        "httpx",
        "httpcore.http11",
        "httpcore.connection",
        "urllib3.connectionpool",
        "asyncio",
    )
    for name in clients:  # the tests' own
        monkeypatch.setattr(logging.getLogger(name), "disabled", True)
    yield start
    root.setLevel(level)
    access.disabled = False


def facts(lines):
    return [json.loads(line) for line in lines]


def count(metrics, endpoint, status):
    return metrics.registry.get_sample_value(
        "funnel_requests_total", {"endpoint": endpoint, "status": str(status)}
    )


def test_an_id_of_the_caller_is_kept(app):
    answer = ask(app, f"/v1/users/{USER}/features", **{"x-request-id": "abc-123~"})
    assert answer.headers["x-request-id"] == answer.json()["request_id"] == "abc-123~"


@pytest.mark.parametrize("given", [None, "", "two words", "x" * 129, "naïve", "tab\tbed"])
def test_another_id_is_made(app, given):
    headers = {} if given is None else {"x-request-id": given.encode()}
    answer = ask(app, f"/v1/users/{USER}/features", **headers)
    made = answer.json()["request_id"]
    assert re.fullmatch("[0-9a-f]{32}", made)
    assert answer.headers.get_list("x-request-id") == [made]


def test_every_request_has_another_id(app):
    ids = {ask(app, "/healthz").headers["x-request-id"] for _ in range(3)}
    assert len(ids) == 3


def test_requests_are_counted_by_route_and_status(app, metrics):
    for user in ("a", "b", "c"):
        ask(app, f"/v1/users/{user}/features")
    for path in ("/wp-admin", "/.env", "/busy"):
        ask(app, path)
    assert count(metrics, "/v1/users/{user_id}/features", 200) == 3
    assert count(metrics, "unknown", 404) == 2
    assert count(metrics, "/busy", 503) == 1
    timed = metrics.registry.get_sample_value(
        "funnel_request_seconds_count", {"endpoint": "unknown"}
    )
    assert timed == 2


def test_requests_under_way_are_counted(app, metrics):
    assert ask(app, "/healthz").json() == {"in_flight": 1}
    ask(app, "/fails")
    assert metrics.registry.get_sample_value("funnel_in_flight") == 0


def test_a_client_that_went_is_counted(app, metrics):
    async def give_up():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            await asyncio.wait_for(client.get("/waits"), 0.2)

    with pytest.raises(TimeoutError):
        asyncio.run(give_up())
    assert count(metrics, "/waits", 499) == 1
    assert metrics.registry.get_sample_value("funnel_in_flight") == 0


def test_an_error_is_a_problem_without_its_reason(app, metrics, logs):
    lines = logs()
    answer = ask(app, "/fails", **{"x-request-id": "find-me"})
    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert set(answer.json()) == {"type", "title", "status", "detail"}
    assert "find-me" in answer.json()["detail"] and "secret" not in answer.text
    assert count(metrics, "/fails", 500) == 1
    text = "\n".join(lines())
    assert "request_id=find-me" in text and "LookupError: a secret" in text and "Traceback" in text


def test_half_an_answer_is_broken_off(app, metrics):
    async def read():
        sent = []

        async def send(message):
            sent.append(message["type"])

        async def receive():
            await asyncio.sleep(30)

        scope = {
            "type": "http",
            "method": "GET",
            "path": "/half",
            "headers": [],
            "query_string": b"",
            "root_path": "",
        }
        await app(scope, receive, send)

    with pytest.raises(BaseException) as caught:
        asyncio.run(read())
    assert "a secret" in repr(caught.value)
    assert count(metrics, "/half", 500) == 1


def test_one_line_of_json_a_request(app, logs):
    lines = logs(FUNNEL_LOG="json")
    ask(
        app,
        f"/v1/users/{USER}/features?token=hidden",
        **{"x-request-id": "r1", "x-api-key": "hidden"},
    )
    inner, access = facts(lines())
    assert inner["message"] == "looked at a user" and inner["request_id"] == "r1"
    assert inner["level"] == "WARNING" and inner["logger"] == "serving.test"
    assert (
        abs(time.time() - time.mktime(time.strptime(access.pop("time")[:19], "%Y-%m-%dT%H:%M:%S")))
        < 15 * 3_600
    )
    assert 0 < access.pop("ms") < 10_000
    assert access == {
        "level": "INFO", "logger": "serving.http.access", "message": "request", "request_id": "r1",
        "method": "GET", "endpoint": "/v1/users/{user_id}/features", "status": 200, "answer": "a1",
        "degraded": ["no_history"],
    }  # fmt: skip
    assert USER not in "".join(lines()) and "hidden" not in "".join(lines())


def test_probes_are_only_logged_when_debugging(app, logs):
    lines = logs(FUNNEL_LOG="json")
    ask(app, "/healthz")
    assert lines() == []
    lines = logs(FUNNEL_LOG_LEVEL="debug")
    ask(app, "/healthz")
    assert [
        line["endpoint"] for line in facts(lines()) if line["logger"] == "serving.http.access"
    ] == ["/healthz"]


def test_by_default_only_warnings_are_logged(app, logs):
    lines = logs()
    ask(app, f"/v1/users/{USER}/features", **{"x-request-id": "r1"})
    (line,) = lines()
    assert re.fullmatch(r"\S+Z WARNING serving.test: looked at a user request_id=r1", line)


def test_off_is_off(app, logs):
    lines = logs(FUNNEL_LOG="off")
    ask(app, "/fails")
    assert lines() == []


def test_the_level_can_be_set(app, logs):
    lines = logs(FUNNEL_LOG="text", FUNNEL_LOG_LEVEL="error")
    ask(app, f"/v1/users/{USER}/features")
    assert lines() == []


@pytest.mark.parametrize(("name", "value"), [("FUNNEL_LOG", "xml"), ("FUNNEL_LOG_LEVEL", "loud")])
def test_a_setting_that_means_nothing_is_refused(logs, name, value):
    with pytest.raises(SettingsError, match=f"(?i){name}={value}: "):
        logs(**{name: value})


def test_whatever_is_logged_is_one_line_of_json(logs):
    lines = logs(FUNNEL_LOG="json")
    for message in ("two\nlines", 'a "quote"', "half a pair \ud800", "\u2028", "null \0 byte"):
        _log.warning(message)
    _log.warning("%s", {"any": object()}, extra={"facts": {"huge": 2**70, "thing": PROJECT_ROOT}})
    try:
        raise ValueError("why")
    except ValueError:
        _log.exception("failed", stack_info=True)
    seen = facts(lines())
    assert [line["message"] for line in seen[:2]] == ["two\nlines", 'a "quote"']
    assert seen[5]["thing"] == str(PROJECT_ROOT)
    assert seen[-1]["exception"].startswith("Traceback") and seen[-1]["exception"].endswith(
        "ValueError: why"
    )
    assert "request_id" not in seen[0]


class Server(uvicorn.Server):
    """The real server, on a thread."""

    def __enter__(self):
        self.thread = threading.Thread(target=self.run)
        self.thread.start()
        while not self.started:
            assert self.thread.is_alive()
            time.sleep(0.01)
        port = self.servers[0].sockets[0].getsockname()[1]
        return httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10)

    def __exit__(self, *_):
        self.should_exit = True
        self.thread.join(10)


def test_the_servers_own_lines_are_json_and_hold_no_path(app, logs):
    lines = logs(FUNNEL_LOG="json", FUNNEL_LOG_LEVEL="debug")
    with Server(uvicorn.Config(app, port=0, log_config=None)) as client, client:
        client.get(f"/v1/users/{USER}/features", headers={"x-request-id": "first"})
        client.get("/busy")  # on the same connection
        with pytest.raises(httpx.RemoteProtocolError, match="incomplete chunked read"):
            client.get("/half", headers={"x-request-id": "broken"})
    seen = facts(lines())
    assert any(
        line["logger"] == "uvicorn.error" and "Uvicorn running" in line["message"] for line in seen
    )
    access = [line for line in seen if line["logger"] == "serving.http.access"]
    assert [line["status"] for line in access] == [200, 503, 500]
    assert access[0]["request_id"] == "first" != access[1]["request_id"]
    traceback = next(line for line in seen if "exception" in line)
    assert traceback["request_id"] == "broken" and traceback["logger"] == "uvicorn.error"
    assert not any(line["logger"] == "uvicorn.access" for line in seen)
    assert USER not in "".join(lines())


class Collector(HTTPServer):
    """Takes traces by OTLP over HTTP."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Taker)
        self.resources = []

    def spans(self):
        return [span for r in self.resources for scope in r.scope_spans for span in scope.spans]


class Taker(BaseHTTPRequestHandler):
    def do_POST(self):
        assert self.path == "/v1/traces"
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.resources += ExportTraceServiceRequest.FromString(body).resource_spans
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def collector(monkeypatch):
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        yield server
        server.shutdown()
        thread.join()


def attributes(span):
    return {a.key: a.value.string_value or a.value.int_value for a in span.attributes}


def test_a_request_and_its_stages_are_spans_of_the_callers_trace(collector, logs):
    tracing = start_tracing()
    metrics = Metrics(tracing.span)
    app = make_app(metrics, tracing)
    lines = logs(FUNNEL_LOG="json")
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    path, given = (
        f"/v1/users/{USER}/features",
        {"traceparent": f"00-{trace}-{parent}-01", "x-request-id": "r1"},
    )
    assert ask(app, path, **given).status_code == 200
    ask(app, "/healthz")
    tracing.close()
    spans = {span.name: span for span in collector.spans()}
    assert set(spans) == {"GET /v1/users/{user_id}/features", "features", "rank"}
    outer = spans["GET /v1/users/{user_id}/features"]
    assert {span.trace_id.hex() for span in spans.values()} == {trace}
    assert outer.parent_span_id.hex() == parent
    assert spans["features"].parent_span_id == outer.span_id
    assert spans["rank"].parent_span_id == spans["features"].span_id
    assert attributes(outer) == {
        "http.request.method": "GET", "http.route": "/v1/users/{user_id}/features",
        "http.response.status_code": 200, "funnel.request_id": "r1",
    }  # fmt: skip
    assert USER not in str(collector.resources)
    assert {
        line.get("trace_id") for line in facts(lines()) if line["logger"] != "serving.test"
    } == {trace}
    (resource,) = collector.resources
    assert attributes(resource.resource)["service.name"] == "funnel"
    assert metrics.registry.get_sample_value("funnel_stage_seconds_count", {"stage": "rank"}) == 1


def test_a_failed_span_names_the_kind_of_error_only(collector):
    tracing = start_tracing()
    ask(make_app(Metrics(tracing.span), tracing), "/fails")
    tracing.close()
    spans = {span.name: span for span in collector.spans()}
    assert attributes(spans["rank"])["error.type"] == "LookupError"
    assert spans["rank"].status.code == spans["GET /fails"].status.code == 2  # error
    assert "secret" not in str(collector.resources)


@pytest.mark.parametrize(
    "environment", [{}, {"FUNNEL_OTEL": "off", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}]
)
def test_without_tracing_nothing_of_it_is_imported(environment, monkeypatch):
    for name in (
        "FUNNEL_OTEL",
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    ):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    code = (
        "import sys; from serving.http.telemetry import start_tracing; "
        "assert start_tracing() is None; "
        "sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT_ROOT).returncode == 0
