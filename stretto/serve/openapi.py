"""The OpenAPI document, from the structs that check the bodies."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.types import ASGIApp

import stretto
from stretto.serve.auth import PUBLIC
from stretto.serve.shapes import api_of


def _object(**fields: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(fields), "properties": fields}


_TEXT = {"type": "string"}
_ERRORS: dict[str, dict[str, Any]] = {
    "openai": _object(
        error=_object(
            message=_TEXT, type=_TEXT, param={"type": ["string", "null"]}, code={"type": ["string", "integer", "null"]}
        )
    ),
    "anthropic": _object(type={"const": "error"}, error=_object(type=_TEXT, message=_TEXT), request_id=_TEXT),
    "ollama": _object(error=_TEXT),
}
_NAMES = {"openai": "Error", "anthropic": "AnthropicError", "ollama": "OllamaError"}


@dataclass(frozen=True, slots=True)
class Entry:
    """A route. kind: of its body; None = it has none."""

    method: str
    path: str
    summary: str
    endpoint: ASGIApp
    kind: type[msgspec.Struct] | None = None
    media_type: str = "application/json"


def document(entries: Sequence[Entry]) -> dict[str, Any]:
    """OpenAPI 3.1. Every error of a route has the body of its API."""
    kinds = [entry.kind for entry in entries if entry.kind is not None]
    schemas, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    by_kind = dict(zip(kinds, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for entry in entries:
        operation: dict[str, Any] = {
            "summary": entry.summary,
            "operationId": f"{entry.method}_{entry.path}".lower().translate(str.maketrans("/{}-", "____")),
            "responses": {
                "200": {"description": "OK", "content": {entry.media_type: {"schema": {}}}},
                "default": {
                    "description": "an error",
                    "content": {
                        "application/json": {"schema": {"$ref": f"#/components/schemas/{_NAMES[api_of(entry.path)]}"}}
                    },
                },
            },
        }
        if entry.path in PUBLIC:
            operation["security"] = []
        if "{id" in entry.path:
            operation["parameters"] = [
                {"name": "id", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
            ]
        if entry.kind is not None:
            body = {"required": True, "content": {"application/json": {"schema": by_kind[entry.kind]}}}
            operation["requestBody"] = body
        paths.setdefault(entry.path.replace("{id:path}", "{id}"), {})[entry.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "stretto", "version": stretto.__version__},
        "paths": paths,
        "components": {
            "schemas": {**components, **{_NAMES[api]: schema for api, schema in _ERRORS.items()}},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}],
    }
