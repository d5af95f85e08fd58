"""What a browser is told: headers of every response, other origins, failures."""

import base64
import hashlib
import re

import pytest

from feature_repo.settings import SettingsError, read_settings
from tests.support.access_app import SAFE, SHOP, bearer, is_problem


def test_every_response_has_the_headers(door, new_key):
    headers = bearer(new_key("recommend"))
    client = door()
    answers = [
        client.get("/healthz"),
        client.get("/v1/items/a/similar", headers=headers),
        client.post("/v1/recommendations", content=b"{", headers=headers),
        client.post("/v1/recommendations"),
    ]
    assert [a.status_code for a in answers] == [200, 200, 422, 401]
    for answer in answers:
        assert SAFE.items() <= answer.headers.items()
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_a_failure_is_a_problem_without_its_reason(door, caplog):
    answer = door(ring=False).get("/v1/items/broken", headers={"x-request-id": "r-17"})
    assert is_problem(answer, 500) and "secret" not in answer.text
    assert "request id r-17" in answer.json()["detail"]
    assert "a secret of the server" in caplog.text


def test_around_the_app_it_adds_headers_to_failures_too(door):
    answer = door(ring=False).get("/v1/items/broken")
    assert answer.status_code == 500 and SAFE.items() <= answer.headers.items()


def test_the_docs_load_only_what_this_server_has(door):
    client = door(ring=False)
    answer = client.get("/docs")
    policy = answer.headers["content-security-policy"]
    directives = {name: sources for name, *sources in (part.split() for part in policy.split(";"))}
    assert directives["default-src"] == directives["frame-ancestors"] == ["'none'"]
    assert directives["connect-src"] == ["'self'"]
    assert "'unsafe-inline'" not in directives["script-src"]

    [script] = re.findall(r"<script>(.*?)</script>", answer.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"'sha256-{digest}'" in directives["script-src"]

    urls = re.findall(r'(?:src|href)="([^"]+)"', answer.text)
    assert len(urls) == 3 and all(url.startswith("/docs/") for url in urls)
    for url in urls:
        assert client.get(url).status_code == 200
    assert not re.findall(r"https?://", policy)
    assert client.get("/docs/../hosts.py").status_code == 404


def preflight(client, origin, route="/v1/recommendations"):
    asked = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "x-api-key",
    }
    return client.options(route, headers=asked)


def test_pages_of_allowed_origins_may_call(door, new_key):
    text = new_key("recommend")
    client = door(origins=[SHOP, "http://localhost:3000"])
    answer = preflight(client, SHOP)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == SHOP
    assert answer.headers["access-control-allow-methods"].split(", ") == [
        "GET",
        "POST",
        "PUT",
        "DELETE",
    ]
    assert {"authorization", "x-api-key", "content-type"} <= set(
        answer.headers["access-control-allow-headers"].split(", ")
    )
    assert "Origin" in answer.headers["vary"] and SAFE.items() <= answer.headers.items()
    for headers, status in ((bearer(text), 200), ({}, 401)):
        answer = client.post("/v1/recommendations", json={}, headers={"origin": SHOP, **headers})
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == SHOP


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        f"{SHOP}.evil.example",
        "http://shop.example",
        f"{SHOP}:444",
        "null",
        "",
    ],
)
@pytest.mark.parametrize("origins", [[SHOP], []])
def test_others_may_not(door, new_key, origin, origins):
    text = new_key("recommend")
    client = door(origins=origins)
    refused = preflight(client, origin)
    assert refused.status_code == (400 if origins else 401)
    assert "access-control-allow-origin" not in refused.headers
    answer = client.post("/v1/recommendations", json={}, headers={"origin": origin, **bearer(text)})
    assert answer.status_code == 200, (
        "a browser keeps it from the page; other callers have no origin to speak of"
    )
    assert "access-control-allow-origin" not in answer.headers
    assert ("vary" in answer.headers) is bool(origins)


def test_origins_from_the_environment(monkeypatch):
    monkeypatch.delenv("FUNNEL_CORS_ORIGINS", raising=False)
    assert read_settings().cors_origins == ()
    monkeypatch.setenv("FUNNEL_CORS_ORIGINS", f"{SHOP}, http://localhost:3000,http://[::1]:8080,")
    assert read_settings().cors_origins == (SHOP, "http://localhost:3000", "http://[::1]:8080")
    for wrong in ("*", "shop.example", f"{SHOP}/", f"{SHOP}/path", "null", "https://a b"):
        monkeypatch.setenv("FUNNEL_CORS_ORIGINS", wrong)
        with pytest.raises(SettingsError, match="is not of the form https://host"):
            read_settings()
