"""A server without keys answers this machine, and no page of a browser on it."""

from __future__ import annotations

import pytest

from tests.support.access_app import bearer, is_problem

EVENT = "/v1/events"


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8000", "127.0.0.1", "127.0.0.1:9", "[::1]", "[::1]:8000"]
)
def test_the_names_of_this_machine_are_answered(door, host):
    assert door(ring=False).get("/metrics", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example"]
    + ["0.0.0.0", "[::2]", "[", "", "a@localhost.evil.example", "localhost@evil.example"],
)
def test_other_names_are_refused(door, host):
    client = door(ring=False)
    answer = client.get("/metrics", headers={"host": host})
    assert is_problem(answer, 421) and "FUNNEL_ALLOWED_HOSTS" in answer.json()["detail"]
    assert client.get("/readyz", headers={"host": host}).status_code == 200, "probes use addresses"


def test_a_gateway_has_a_name(door):
    client = door(ring=False, hosts=["Shop.Internal"])
    assert client.get("/metrics", headers={"host": "shop.internal:80"}).status_code == 200
    assert client.get("/metrics", headers={"host": "localhost"}).status_code == 200
    assert is_problem(client.get("/metrics", headers={"host": "other"}), 421)
    any_host = door(ring=False, hosts=["*"])
    assert any_host.get("/metrics", headers={"host": "other"}).status_code == 200


@pytest.mark.parametrize(
    "kind",
    ["text/plain", "text/plain;charset=UTF-8", "application/x-www-form-urlencoded"]
    + ["multipart/form-data; boundary=x", None, "application/jsonx"],
)
def test_what_a_browser_sends_without_asking_is_refused(door, kind):
    headers = {"content-type": kind} if kind else {}
    client = door(ring=False)
    assert is_problem(client.post(EVENT, content=b'{"events": []}', headers=headers), 415)
    for good in ("application/json", "application/json; charset=utf-8", "Application/JSON"):
        answer = client.post(EVENT, content=b'{"a": 1}', headers={"content-type": good})
        assert answer.status_code == 200
    assert client.delete("/v1/users/u1").status_code == 200, "a browser asks first"


def test_a_server_with_keys_has_its_keys(door, new_key):
    headers = {"host": "shop.example", "content-type": "text/plain", **bearer(new_key("admin"))}
    assert door().get("/metrics", headers=headers).status_code == 200
