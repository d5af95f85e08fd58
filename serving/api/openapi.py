"""What ``/openapi.json`` says of the bodies that FastAPI does not read itself."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from serving.releases.delta import values
from serving.releases.release import Release


def described(model: type[BaseModel], release: Release, required: bool = True) -> dict[str, Any]:
    """Return the description of a request body, in which items' attributes are those that they really have."""
    schema = model.model_json_schema()
    definitions = schema.pop("$defs", {})
    known = {"filters": _filters(release), "attributes": _attributes(release)}

    def resolve(part: Any) -> Any:
        """Put in the place of a reference what it refers to, so that the schema can stand anywhere."""
        if isinstance(part, list):
            return [resolve(one) for one in part]
        if not isinstance(part, dict):
            return part
        if "$ref" in part:
            return resolve(definitions[part["$ref"].rpartition("/")[2]])
        return {
            name: known[name] if name in known else resolve(value) for name, value in part.items()
        }

    return {
        "requestBody": {
            "required": required,
            "content": {"application/json": {"schema": resolve(schema)}},
        }
    }


def _filters(release: Release) -> dict[str, Any]:
    values = {"type": "array", "items": {"type": "string"}, "maxItems": 1_000}
    number = {"type": "number"}
    conditions = {
        name: {"min": number, "max": number}
        if kind == "numeric"
        else {"in": values, "not_in": values}
        for name, kind in release.codec.spec.item_attributes.items()
        if kind != "text"
    }
    rules = {
        name: {"type": "object", "properties": of, "additionalProperties": False}
        for name, of in conditions.items()
    }
    return {"type": "object", "properties": rules, "additionalProperties": False, "default": {}}


def _attributes(release: Release) -> dict[str, Any]:
    properties = {
        name: values(kind).json_schema()
        for name, kind in release.codec.spec.item_attributes.items()
    }
    return {"type": "object", "properties": properties, "additionalProperties": False}
