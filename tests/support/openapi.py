"""The API's description, made stricter than it is published, so that nothing in it can drift."""

from __future__ import annotations

import json
from typing import Any

from jsonschema_rs import Draft202012Validator

from kmsjwks.http.openapi.description import describe


def strict_description() -> dict[str, Any]:
    """Answers hold no member that is not described, though clients must expect new ones."""
    found: dict[str, Any] = json.loads(json.dumps(describe()))  # nothing in it is shared then
    schemas = found["components"]["schemas"]
    found["components"]["schemas"] = {name: closed(schema) for name, schema in schemas.items()}
    return found


def closed(schema: Any) -> Any:
    """With ``additionalProperties: false`` wherever nothing is said about them."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: closed(value) for name, value in schema.items()}
    if "properties" in schema and "type" in schema and isinstance(schema["type"], str | list):
        found.setdefault("additionalProperties", False)
    return found


def mismatches(value: Any, schema: str) -> list[str]:
    """What is wrong with ``value`` by the strict schema of this name."""
    document = strict_description()
    document["$ref"] = f"#/components/schemas/{schema}"
    return [error.message for error in Draft202012Validator(document).iter_errors(value)]
