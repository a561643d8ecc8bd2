"""OpenAPI 3.1 of this coordinator, made from what the routes say of themselves and from the message types. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from coordinator.credentials import Access
from coordinator.openapi_parts import (
    ERROR_ANSWER,
    IDEMPOTENCY_KEY,
    IF_MATCH,
    IF_NONE_MATCH,
    REF,
    VERSION,
    components,
    error_statuses,
)
from coordinator.route_docs import Download, RouteDoc
from protocol.coordinator_errors import DatabaseAwayError
from protocol.errors import (
    BrigadeError,
    ConflictError,
    DeadlineExceededError,
    ForbiddenError,
    InternalError,
    InvalidRequestError,
    KeyReusedError,
    NotFoundError,
    PreconditionFailedError,
    ProtocolVersionError,
    StorageError,
    TooLargeError,
    UnauthenticatedError,
)

ALWAYS: tuple[type[BrigadeError], ...] = (
    InvalidRequestError,
    ForbiddenError,
    ProtocolVersionError,
    InternalError,
    DatabaseAwayError,
    StorageError,
    DeadlineExceededError,
)
_PARAMETER = re.compile(r"{(\w+)}")
_NO_WORD = re.compile(r"\W+")


@dataclass(frozen=True, slots=True, kw_only=True)
class DescribedRoute:
    """A route with its description."""

    access: Access
    method: str
    path: str
    doc: RouteDoc


def openapi(routes: Iterable[DescribedRoute], version: str) -> dict[str, Any]:
    """The document; `version` is the program's."""
    routes = list(routes)
    schemas = _Schemas([route.doc for route in routes])
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Brigade coordinator",
            "version": version,
            "summary": "What clients, workers and operators ask of a coordinator.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": tag} for tag in sorted({_tag(route) for route in routes})],
        "paths": paths,
        "components": components(schemas.components),
    }


class _Schemas:
    """JSON schemas of the message types."""

    def __init__(self, docs: Sequence[RouteDoc]) -> None:
        bodies = [kind for doc in docs for kind in (doc.body, doc.answer) if isinstance(kind, type)]
        queries = [doc.query for doc in docs if doc.query is not None]
        found, self.components = msgspec.json.schema_components(
            [*bodies, ERROR_ANSWER], ref_template=REF + "{name}"
        )
        self._of = dict(zip([*bodies, ERROR_ANSWER], found, strict=True))
        self._queries = {kind: _without_refs(kind) for kind in queries}

    def body(self, kind: type[msgspec.Struct]) -> dict[str, Any]:
        """A reference to the schema of a body."""
        return self._of[kind]

    def query(self, kind: type[msgspec.Struct]) -> Iterable[dict[str, Any]]:
        """Query parameters."""
        schema = self._queries[kind]
        for name, field in schema["properties"].items():
            is_required = name in schema.get("required", ())
            yield {"name": name, "in": "query", "required": is_required, "schema": _not_null(field)}


def _without_refs(kind: type[msgspec.Struct]) -> Mapping[str, Any]:
    _, found = msgspec.json.schema_components([kind])
    schema: Mapping[str, Any] = found[kind.__name__]
    return schema


def _not_null(field: dict[str, Any]) -> dict[str, Any]:
    """A parameter that may be left out is never null."""
    field = {name: value for name, value in field.items() if not (name == "default" and value is None)}
    if "anyOf" in field:
        kinds = [kind for kind in field.pop("anyOf") if kind.get("type") != "null"]
        return {**field, **kinds[0]} if len(kinds) == 1 else {**field, "anyOf": kinds}
    if isinstance(field.get("enum"), list):
        return {**field, "enum": [value for value in field["enum"] if value is not None]}
    return field


def _operation(route: DescribedRoute, schemas: _Schemas) -> dict[str, Any]:
    doc = route.doc
    operation: dict[str, Any] = {
        "operationId": _NO_WORD.sub("_", f"{route.method.lower()}{_named(route.path)}").strip("_"),
        "summary": doc.summary,
        "tags": [_tag(route)],
        "parameters": [VERSION, *_path_parameters(route.path), *_headers(route)],
        "responses": _responses(route, schemas),
    }
    if doc.query is not None:
        operation["parameters"] += schemas.query(doc.query)
    if doc.body is not None:
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": schemas.body(doc.body)}},
        }
    operation["security"] = [{scheme: []} for scheme in _SCHEMES[route.access]]
    return operation


def _named(path: str) -> str:
    return f"{path}index" if path.endswith("/") else path


_SCHEMES: Mapping[Access, tuple[str, ...]] = {
    "open": (),
    "worker": ("sessionToken",),
    "client": ("apiKey",),
    "reader": ("apiKey", "sessionToken"),
    "admin": ("adminKey",),
}


def _path_parameters(path: str) -> Iterable[dict[str, Any]]:
    for name in _PARAMETER.findall(path):
        schema = {"type": "string", "minLength": 1}
        yield {"name": name, "in": "path", "required": True, "schema": schema}


def _headers(route: DescribedRoute) -> Iterable[dict[str, Any]]:
    if is_repeatable(route):
        yield IDEMPOTENCY_KEY
    if route.doc.resource is not None:
        yield IF_NONE_MATCH if route.method == "GET" else IF_MATCH


def is_repeatable(route: DescribedRoute) -> bool:
    """Whether it goes by the Idempotency-Key."""
    return route.method == "POST" and route.access == "admin"


def _responses(route: DescribedRoute, schemas: _Schemas) -> dict[str, Any]:
    doc = route.doc
    answer: dict[str, Any] = {"description": "Done." if doc.answer is None else "The answer."}
    match doc.answer:
        case Download(media_type=media_type):
            answer["content"] = {media_type: {"schema": {}}}
        case type():
            answer["content"] = {"application/json": {"schema": schemas.body(doc.answer)}}
        case None:
            pass
    if doc.resource is not None and route.method != "DELETE":
        answer["headers"] = {"ETag": {"$ref": "#/components/headers/ETag"}}
    responses = {str(doc.status): answer}
    if doc.resource is not None and route.method == "GET":
        responses["304"] = {"description": "It is as If-None-Match says.", "headers": answer["headers"]}
    for status in error_statuses(_errors(route)):
        responses[str(status)] = {"$ref": f"#/components/responses/Error{status}"}
    return dict(sorted(responses.items()))


def _errors(route: DescribedRoute) -> Iterable[type[BrigadeError]]:
    yield from ALWAYS
    yield from route.doc.errors
    if route.access != "open":
        yield UnauthenticatedError
    if "{" in route.path:
        yield NotFoundError
    if route.doc.body is not None or is_repeatable(route):
        yield TooLargeError
    if route.doc.resource is not None and route.method != "GET":
        yield PreconditionFailedError
    if is_repeatable(route):
        yield ConflictError
        yield KeyReusedError


def _tag(route: DescribedRoute) -> str:
    """The last fixed part but the version: `keys`, `workers`."""
    parts = [part for part in route.path.split("/") if part and not part.startswith("{")]
    is_admin = parts[:1] == ["admin"]
    named = [part for part in parts if part not in ("admin", "v1")]
    return f"{'admin: ' if is_admin else ''}{named[0] if named else 'other'}"
