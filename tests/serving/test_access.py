"""Who gets in, by which key, to what: a small app behind the real middleware, with real keys."""

import asyncio
import logging
import time
from datetime import UTC, datetime, timedelta

import pytest

from feature_repo.settings import SettingsError
from serving.http.access import AccessMiddleware, NoKeys, load_keys, required_scope
from serving.http.keys import BadKeys, KeyRing, Scope, revoke, rotate
from tests.support.access_app import Client, a_call, an_app, bearer, behind_middleware, is_problem

ROUTES = [
    ("POST", "/v1/recommendations", {"recommend", "admin"}),
    ("GET", "/v1/items/a/b/similar", {"recommend", "admin"}),
    ("GET", "/v1/users/u1/features", {"recommend", "admin"}),
    ("POST", "/v1/events", {"events", "admin"}),
    ("DELETE", "/v1/users/u1", {"admin"}),
    ("POST", "/v1/admin/reload", {"admin"}),
    ("GET", "/metrics", {"admin"}),
    ("GET", "/openapi.json", {"recommend", "events", "admin"}),
    ("GET", "/docs", {"recommend", "events", "admin"}),
]


@pytest.mark.parametrize(("method", "route", "allowed"), ROUTES)
@pytest.mark.parametrize("scope", list(Scope))
def test_scopes(door, new_key, method, route, allowed, scope):
    headers = bearer(new_key(scope))
    client = door()
    body = {"json": {"a": 1}} if method == "POST" else {}
    answer = client.request(method, route, headers=headers, **body)
    assert answer.status_code == 200 if scope in allowed else is_problem(answer, 403)
    if scope not in allowed:
        assert "scope" in answer.json()["detail"]
    refused = client.request(method, route, **body)
    assert is_problem(refused, 401) and refused.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("route", ["/healthz", "/readyz"])
def test_probes_need_no_key(door, new_key, route):
    new_key("events")
    client = door()
    assert client.get(route).status_code == 200
    assert client.head(route).status_code == 405, (
        "let in: it is the app that answers nothing but GET"
    )
    assert is_problem(client.delete(route), 401)


@pytest.mark.parametrize(
    "route",
    [
        "/",
        "/nothing",
        "/v1/recommendation",
        "/v1/eventsx",
        "/v1/users",
        "/HEALTHZ",
        "//healthz",
        "/healthz/",
    ],
)
def test_a_route_that_nobody_named_is_for_admins(door, new_key, route):
    events, admin = new_key("events", "recommend"), new_key("admin")
    client = door()
    assert is_problem(client.get(route), 401)
    assert is_problem(client.get(route, headers=bearer(events)), 403)
    assert client.get(route, headers=bearer(admin), follow_redirects=False).status_code in (
        404,
        307,
    )


def test_only_reading_users_is_for_everyone_who_recommends():
    assert (
        required_scope("GET", "/v1/users/a/features")
        == required_scope("HEAD", "/v1/users/a/features")
        == Scope.RECOMMEND
    )
    assert (
        required_scope("POST", "/v1/users/a") == required_scope("PUT", "/v1/users/a") == Scope.ADMIN
    )
    assert (
        required_scope("DELETE", "/v1/items/a")
        == required_scope("DELETE", "/v1/events")
        == Scope.ADMIN
    )


def test_a_mounted_app_has_the_same_routes(keys_file, new_key):
    scopes, probe = bearer(new_key("events")), "/funnel/healthz"
    client = Client(behind_middleware(an_app(), KeyRing(keys_file)), root_path="/funnel")
    assert client.get(probe).status_code == 200
    assert client.post("/funnel/v1/events", json={}, headers=scopes).status_code == 200
    assert is_problem(client.get("/funnel/metrics", headers=scopes), 403)


def test_where_a_key_may_stand(door, new_key):
    text = new_key("events")
    client = door()

    def status(**headers):
        return client.get(
            "/openapi.json", headers={k.replace("_", "-"): v for k, v in headers.items()}
        ).status_code

    assert status(authorization=f"Bearer {text}") == status(authorization=f"bearer  {text} ") == 200
    assert (
        status(x_api_key=text) == status(x_api_key=text, authorization="Basic Z2F0ZXdheQ==") == 200
    )
    assert status(authorization=text) == status(authorization=f"Basic {text}") == 401
    assert status(x_api_key=text, authorization="Bearer fk_00000000_x") == 401
    assert client.get(f"/openapi.json?key={text}&x-api-key={text}").status_code == 401
    assert (
        client.get("/openapi.json", headers={"authorization": b"Bearer \xff\xfe"}).status_code
        == 401
    )


def test_expired_revoked_and_rotated_keys(door, keys_file, new_key):
    soon = datetime.now(UTC) + timedelta(seconds=1.5)
    short, first, other = new_key("events", expires_at=soon), new_key("events"), new_key("events")
    client = door()

    def allowed(text):
        return client.get("/openapi.json", headers=bearer(text)).status_code == 200

    assert allowed(short) and allowed(first) and allowed(other)
    revoke(keys_file, other.split("_")[1])
    second = rotate(keys_file, first.split("_")[1], timedelta(seconds=1.5)).text
    time.sleep(0.1)
    assert allowed(first) and allowed(second) and not allowed(other)
    time.sleep(1.6)
    assert allowed(second) and not allowed(first) and not allowed(short)


def test_no_log_and_no_answer_shows_a_key(door, keys_file, new_key, caplog):
    caplog.set_level(logging.DEBUG)
    good, over = new_key("events", rate_limit=1.0), new_key("events", expires_at=datetime.now(UTC))
    client = door(max_body=100)
    said = []
    for text in (good, good, over, good[:-1], "hunter2hunter2"):
        for headers in (bearer(text), {"x-api-key": text}):
            answers = [
                client.get("/metrics", headers=headers),
                client.post("/v1/events", json={}, headers=headers),
            ]
            said += [f"{a.text} {a.headers}" for a in answers]
    keys_file.write_text("{")
    time.sleep(0.1)
    said.append(client.get("/v1/items/broken", headers=bearer(good)).text)
    text = "\n".join(
        [
            *said,
            *(
                f"{r.getMessage()} {r.exc_text} {r.args}"
                for r in caplog.records
                if r.name != "httpx"
            ),
        ]
    )
    assert "stay as they were" in text
    for secret in (good.split("_", 2)[2], over.split("_", 2)[2], "hunter2hunter2"):
        assert secret[:-1] not in text


LOOPBACK = ["127.0.0.1", "127.8.9.1", "::1", "localhost"]
OUTSIDE = [
    "0.0.0.0",
    "::",
    "",
    "10.1.2.3",
    "192.168.0.5",
    "example.com",
    "localhost.evil.example",
    "::ffff:10.0.0.1",
]


@pytest.fixture
def closed(monkeypatch):
    monkeypatch.delenv("FUNNEL_OPEN", raising=False)


@pytest.mark.usefixtures("closed")
@pytest.mark.parametrize("host", LOOPBACK)
def test_this_machine_needs_no_keys(keys_file, host, caplog):
    assert load_keys(host, keys_file) is None
    [record] = caplog.records
    assert record.levelno == logging.WARNING and "no API keys" in record.getMessage()


@pytest.mark.usefixtures("closed")
@pytest.mark.parametrize("host", OUTSIDE)
def test_a_network_does(keys_file, host, monkeypatch, caplog):
    with pytest.raises(NoKeys) as refused:
        load_keys(host, keys_file)
    for word in (
        "funnel keys create --name web --scope recommend --scope events",
        "FUNNEL_OPEN=yes",
    ):
        assert word in str(refused.value)
    monkeypatch.setenv("FUNNEL_OPEN", "no")
    with pytest.raises(NoKeys, match="there are no API keys"):
        load_keys(host, keys_file)
    monkeypatch.setenv("FUNNEL_OPEN", "1")
    with pytest.raises(SettingsError, match="FUNNEL_OPEN=1"):
        load_keys(host, keys_file)
    monkeypatch.setenv("FUNNEL_OPEN", "yes")
    assert load_keys(host, keys_file) is None and len(caplog.records) == 1


@pytest.mark.parametrize("host", [*LOOPBACK, *OUTSIDE])
def test_keys_that_are_there_are_asked_for_everywhere(
    keys_file, new_key, host, monkeypatch, caplog
):
    monkeypatch.setenv("FUNNEL_OPEN", "yes")
    text = new_key("events")
    ring = load_keys(host, keys_file)
    assert ring and ring.find(text) and not caplog.records
    keys_file.write_text("[]")
    with pytest.raises(BadKeys):
        load_keys(host, keys_file)


def test_no_key_left_lets_nobody_in(door, keys_file, new_key):
    revoke(keys_file, new_key("admin").split("_")[1])
    assert is_problem(door().get("/metrics"), 401)


def test_websockets_are_closed():
    sent, *call = a_call("/v1/recommendations", kind="websocket")
    asyncio.run(AccessMiddleware(an_app(), None)(*call))
    assert sent == [{"type": "websocket.close", "code": 1008}]
