"""``/openapi.json``: named models, API-key schemes with scopes, and this release's attributes."""

from __future__ import annotations

from copy import deepcopy
from datetime import UTC, datetime
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from feature_repo.cell_values import MAX_NUMBER
from feature_repo.events.context import MAX_TEXT
from serving.api.problems import MEDIA_TYPE, Problem
from serving.api.schemas import Event, ItemUpdate, RecommendationBatchRequest, RecommendationRequest
from serving.http.access import needs_key, required_scope
from serving.releases.delta import values
from serving.releases.release import Release

DESCRIPTION = """\
Recommendations from one release, which a server follows while it changes.

Errors are problem details (RFC 9457). Ids are strings of 1 to 256 characters. Examples use ids of
the built-in world.
"""

TAGS = [
    {"name": "recommendations", "description": "Ranked items for users, and similar items."},
    {"name": "events", "description": "What users did; the next request of a user sees it."},
    {"name": "items", "description": "Add, remove and restore items of the release in service."},
    {"name": "users", "description": "What is known of a user, and its erasure."},
    {"name": "operations", "description": "Probes and metrics."},
]

PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {
        "description": "Problem details (RFC 9457)",
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    for status in ("4XX", "5XX")
}
"""What every operation may answer besides its own."""

_REF = "#/components/schemas/{model}"
_RAW_MODELS = (RecommendationRequest, RecommendationBatchRequest, ItemUpdate, Event)
"""What handlers read from raw bodies themselves, so that FastAPI does not see it."""

_KEY_SCHEMES = {
    "BearerKey": {
        "type": "http",
        "scheme": "bearer",
        "description": "An API key, made with `funnel keys create`.",
    },
    "ApiKeyHeader": {
        "type": "apiKey",
        "in": "header",
        "name": "X-API-Key",
        "description": "The same API key in a header of its own.",
    },
}


def raw_body(model: type[BaseModel], *, required: bool = True) -> dict[str, Any]:
    """Return the description of a body that its handler reads itself."""
    schema = {"$ref": _REF.format(model=model.__name__)}
    return {
        "requestBody": {"required": required, "content": {"application/json": {"schema": schema}}}
    }


def describe(app: FastAPI, release: Release, *, keys_required: bool) -> dict[str, Any]:
    """Return the OpenAPI document of an app over a release."""
    document = get_openapi(
        title=app.title,
        version=app.version,
        description=DESCRIPTION,
        tags=TAGS,
        routes=app.routes,
    )
    _, bodies = models_json_schema(
        [(model, "validation") for model in _RAW_MODELS], ref_template=_REF
    )
    schemas = document["components"]["schemas"]
    schemas |= deepcopy(bodies["$defs"])
    schemas["Problem"] = _problem_schema()
    schemas["EventBatch"]["properties"]["events"]["items"] = {"$ref": _REF.format(model="Event")}
    _name_attributes(schemas, release)
    document["components"]["securitySchemes"] = _KEY_SCHEMES
    _add_security(document["paths"], keys_required=keys_required)
    return document


def stamp_examples(document: dict[str, Any], now: datetime) -> dict[str, Any]:
    """Return the document with events of this time as examples: old events are rejected."""
    timestamp = now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    schemas = document["components"]["schemas"]
    for event in (
        schemas["Event"]["examples"][0],
        schemas["EventBatch"]["examples"][0]["events"][0],
    ):
        event["timestamp"] = timestamp
    return document


def _problem_schema() -> dict[str, Any]:
    properties = {name: {"type": "string"} for name in Problem.__annotations__}
    return {
        "type": "object",
        "title": "Problem",
        "description": Problem.__doc__,
        "required": list(properties),
        "properties": properties | {"status": {"type": "integer"}},
        "examples": [
            {
                "type": "about:blank",
                "title": "no such item",
                "status": 404,
                "detail": "this release has no item 'i9999'",
            }
        ],
    }


_NUMBER_OR_NULL = {
    "anyOf": [{"type": "number", "minimum": -MAX_NUMBER, "maximum": MAX_NUMBER}, {"type": "null"}]
}
_TEXT_OR_NULL = {"anyOf": [{"type": "string", "maxLength": MAX_TEXT}, {"type": "null"}]}


def _name_attributes(schemas: dict[str, Any], release: Release) -> None:
    """Say what the data set has: items' attributes and conditions on them, types and context."""
    kinds = release.codec.spec.item_attributes
    words = {"type": "array", "items": {"type": "string"}, "maxItems": 1_000}
    bound = {"type": "number"}
    conditions = {
        name: {
            "$ref": _REF.format(model="RangeCondition" if kind == "numeric" else "ValueCondition")
        }
        for name, kind in release.codec.filterable.items()
    }
    attributes = {name: values(kind).json_schema() for name, kind in kinds.items()}
    context = {
        name: _NUMBER_OR_NULL if kind == "numeric" else _TEXT_OR_NULL
        for name, kind in release.codec.spec.context.items()
    }
    named = {
        "ValueCondition": ("One of `in` and none of `not_in`.", {"in": words, "not_in": words}),
        "RangeCondition": ("Between `min` and `max`, both included.", {"min": bound, "max": bound}),
        "ItemFilters": ("Conditions on attributes of items; all must hold.", conditions),
        "ItemAttributes": ("Attributes of an item.", attributes),
        "Context": ("Where an event happens or a request comes from.", context),
    }
    for name, (description, properties) in named.items():
        schemas[name] = {
            "type": "object",
            "title": name,
            "description": description,
            "properties": properties,
            "additionalProperties": False,
        }
    for model, field, name in (
        ("RecommendationRequest", "filters", "ItemFilters"),
        ("RecommendationRequest", "context", "Context"),
        ("Event", "context", "Context"),
        ("ItemUpdate", "attributes", "ItemAttributes"),
    ):
        schemas[model]["properties"][field] = {"$ref": _REF.format(model=name)}
    schemas["Event"]["properties"]["type"]["enum"] = list(release.codec.spec.event_types)
    schemas.pop("AttributeRule", None)


def _add_security(paths: dict[str, Any], *, keys_required: bool) -> None:
    """Name the key schemes of each operation with the scope that it needs; probes need no key."""
    for path, operations in paths.items():
        for method, operation in operations.items():
            if not needs_key(method.upper(), path):
                operation["security"] = []
                continue
            scope = required_scope(method.upper(), path)
            scopes = [] if scope is None else [str(scope)]
            operation["security"] = [{name: scopes} for name in _KEY_SCHEMES]
            if not keys_required:
                operation["security"].append({})
