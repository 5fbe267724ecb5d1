"""The words in which our own documents are written: OpenAPI 3.1."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Schema = dict[str, Any]
JSON = "application/json"
TEXT: Schema = {"type": "string"}
NUMBER: Schema = {"type": "number"}
COUNT: Schema = {"type": "integer", "minimum": 0}
BOOLEAN: Schema = {"type": "boolean"}
ANYTHING: Schema = {"type": "string", "format": "binary"}
METHODS = ("get", "put", "post", "delete", "options", "patch")
WITH_BODY = frozenset({"put", "post", "patch"})


def shape(**fields: Schema) -> Schema:
    """An object that has these fields, all of them and no other."""
    return {
        "type": "object",
        "properties": fields,
        "required": list(fields),
        "additionalProperties": False,
    }


def each(schema: Schema, least: int = 0) -> Schema:
    return {"type": "array", "items": schema, "minItems": least}


def counts(names: Iterable[str] | None = None) -> Schema:
    """An object of counts, by these names; by any if none are given."""
    if names is None:
        return {"type": "object", "additionalProperties": COUNT}
    return shape(**dict.fromkeys(names, COUNT))


def maybe(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def said(value: str) -> Schema:
    return {"type": "string", "const": value}


def one_of(values: Sequence[str]) -> Schema:
    return {"type": "string", "enum": list(values)}


def answer(schema: Schema, kind: str = JSON, headers: Mapping[str, Schema] | None = None) -> dict[str, Any]:
    """An answer of this type, with these headers in any case."""
    lines = {name: {"required": True, "schema": value} for name, value in (headers or {}).items()}
    return {"description": "", "content": {kind: {"schema": schema}}, "headers": lines}


def in_query(name: str, schema: Schema, required: bool = False) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": required, "schema": schema}


def operation(
    answers: Mapping[int, dict[str, Any]], parameters: Sequence[dict[str, Any]] = (), body: bool = False
) -> dict[str, Any]:
    """One method of a path: its answers by status; with a `body`, of any bytes."""
    described: dict[str, Any] = {
        "parameters": list(parameters),
        "responses": {str(status): one for status, one in answers.items()},
    }
    if body:
        described["requestBody"] = {"content": {"application/octet-stream": {"schema": ANYTHING}}}
    return described


def document(title: str, paths: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {"openapi": "3.1.0", "info": {"title": title, "version": "1"}, "paths": dict(paths)}
