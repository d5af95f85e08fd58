"""The API describes itself: named models, scopes, examples, and a generated client that works."""

from __future__ import annotations

import asyncio
import importlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from feature_repo.events.stored import StoredEvent
from feature_repo.workspace import Workspace
from serving.api.schemas import Event
from serving.http.access import required_scope
from serving.http.app import create_app
from tests.support.tiny_release import Tiny

OPERATIONS = {
    "recommend": ("post", "/v1/recommendations"),
    "recommend_batch": ("post", "/v1/recommendations:batch"),
    "similar_items": ("get", "/v1/items/{item_id}/similar"),
    "send_events": ("post", "/v1/events"),
    "put_item": ("put", "/v1/items/{item_id}"),
    "remove_item": ("delete", "/v1/items/{item_id}"),
    "user_features": ("get", "/v1/users/{user_id}/features"),
    "erase_user": ("delete", "/v1/users/{user_id}"),
    "healthz": ("get", "/healthz"),
    "readyz": ("get", "/readyz"),
    "metrics": ("get", "/metrics"),
}


@pytest.fixture
def app(registered_workspace: Workspace, tiny: Tiny) -> FastAPI:
    return create_app(registered_workspace, tiny.release)


@pytest.fixture
def document(app: FastAPI) -> dict[str, Any]:
    return app.openapi()


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


def test_an_event_is_stored_with_the_fields_of_the_api():
    assert StoredEvent.__annotations__.keys() == Event.model_fields.keys()


def test_operations_have_short_names_a_tag_and_a_description(document: dict[str, Any]) -> None:
    named = {op["operationId"]: (method, path) for method, path, op in operations(document)}
    assert named == OPERATIONS
    tags = {tag["name"] for tag in document["tags"]}
    for _, path, operation in operations(document):
        assert operation["tags"] and set(operation["tags"]) <= tags, path
        assert operation["description"], path


def test_bodies_are_named_models_with_limits(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    bodies = {}
    for _, _, operation in operations(document):
        if "requestBody" in operation:
            schema = operation["requestBody"]["content"]["application/json"]["schema"]
            bodies[operation["operationId"]] = schema["$ref"].rpartition("/")[2]
    assert bodies == {
        "recommend": "RecommendationRequest",
        "recommend_batch": "RecommendationBatchRequest",
        "send_events": "EventBatch",
        "put_item": "ItemUpdate",
    }
    k = schemas["RecommendationRequest"]["properties"]["k"]
    assert (k["minimum"], k["maximum"], k["default"]) == (1, 500, 20)
    event = schemas["Event"]
    assert event["required"] == ["event_id", "user_id", "item_id", "type", "timestamp"]
    assert event["properties"]["event_id"]["maxLength"] == 256
    assert event["properties"]["type"]["enum"] == ["view", "buy", "hide"]
    assert schemas["EventBatch"]["properties"]["events"]["items"]["$ref"].endswith("/Event")
    assert set(schemas["ItemFilters"]["properties"]) == {"tags", "price", "genre", "format"}
    assert set(schemas["ItemAttributes"]["properties"]) >= {"title", "tags", "price"}


def test_every_reference_leads_to_a_schema(document: dict[str, Any]) -> None:
    text = json.dumps(document)
    names = {part.partition('"')[0] for part in text.split('"#/components/schemas/')[1:]}
    assert names <= set(document["components"]["schemas"])


def test_operations_name_the_scope_of_a_key(document: dict[str, Any]) -> None:
    assert set(document["components"]["securitySchemes"]) == {"BearerKey", "ApiKeyHeader"}
    for method, path, operation in operations(document):
        if path in ("/healthz", "/readyz"):
            assert operation["security"] == []
            continue
        scope = required_scope(method.upper(), path)
        assert operation["security"] == [
            {"BearerKey": [scope]},
            {"ApiKeyHeader": [scope]},
            {},  # this server has no keys
        ]


def test_the_examples_of_bodies_are_accepted(app: FastAPI, document: dict[str, Any]) -> None:
    async def use() -> None:
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
        ):
            for path in ("/v1/recommendations", "/v1/recommendations:batch", "/v1/events"):
                body = document["paths"][path]["post"]["requestBody"]["content"]
                name = body["application/json"]["schema"]["$ref"].rpartition("/")[2]
                [example] = document["components"]["schemas"][name]["examples"]
                answer = await client.post(path, json=example)
                assert answer.status_code in (200, 202), answer.text
                assert not answer.json().get("rejected")

    asyncio.run(use())


def generate(document: dict[str, Any], folder: Path) -> ModuleType:
    """Generate a client with openapi-python-client and import it."""
    (folder / "openapi.json").write_text(json.dumps(document))
    (folder / "config.yaml").write_text("package_name_override: funnel_client\npost_hooks: []\n")
    command = [sys.executable, "-m", "openapi_python_client", "generate", "--meta", "none"]
    command += ["--path", str(folder / "openapi.json"), "--config", str(folder / "config.yaml")]
    command += ["--output-path", str(folder / "funnel_client"), "--fail-on-warning"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return importlib.import_module("funnel_client")


def test_a_generated_client_works(
    app: FastAPI, document: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    generate(document, tmp_path)
    models = importlib.import_module("funnel_client.models")
    api = {
        name: importlib.import_module(f"funnel_client.api.{tag}.{name}")
        for tag, name in (
            ("recommendations", "recommend"),
            ("recommendations", "similar_items"),
            ("events", "send_events"),
            ("users", "user_features"),
        )
    }
    make_client = importlib.import_module("funnel_client").Client
    transport = httpx.ASGITransport(app)
    client = make_client("http://localhost", httpx_args={"transport": transport})

    async def use() -> None:
        async with app.router.lifespan_context(app):
            filters = models.ItemFilters(genre=models.ValueCondition(in_=["War", "Drama"]))
            query = models.RecommendationRequest(user_id="client", k=5, filters=filters)
            answer = await api["recommend"].asyncio(client=client, body=query)
            assert len(answer.items) == 5 and answer.items[0].item_id

            event = models.Event(
                event_id="generated-1",
                user_id="client",
                item_id=answer.items[0].item_id,
                type_=models.EventType.VIEW,
                timestamp=time.time(),
                request_id=answer.request_id,
            )
            batch = models.EventBatch(events=[event])
            receipt = await api["send_events"].asyncio(client=client, body=batch)
            assert (receipt.accepted, receipt.duplicates, receipt.rejected) == (1, 0, [])
            features = await api["user_features"].asyncio("client", client=client)
            assert features.known

            problem = await api["similar_items"].asyncio("nothing", client=client)
            assert isinstance(problem, models.Problem) and problem.status == 404

    asyncio.run(use())
