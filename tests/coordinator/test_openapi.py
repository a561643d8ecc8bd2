"""The OpenAPI document is valid, describes every route, and names every error code."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from coordinator.app import RunningCoordinator
from coordinator.keys import ACCESS, ROUTE_DOCS
from coordinator.openapi_api import INTEGRITY
from protocol.error_forms import all_errors
from tests.support.coordinators import Http, http_session, running_coordinator


@pytest.fixture
async def coordinator(tmp_path: Path) -> AsyncIterator[RunningCoordinator]:
    async with running_coordinator(tmp_path) as running:
        yield running


@pytest.fixture
async def stranger(coordinator: RunningCoordinator) -> AsyncIterator[Http]:
    async with http_session(coordinator) as session:
        yield session


@pytest.fixture
async def document(stranger: Http) -> Any:
    answer = await stranger.ask("GET", "/openapi.json")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")
    return json.loads(answer.body)


def test_every_route_is_described(coordinator: RunningCoordinator) -> None:
    app = coordinator.application
    undescribed = [f"{route.method} {route.resource}" for route in app[ACCESS] if route not in app[ROUTE_DOCS]]
    assert undescribed == []


async def test_the_document_is_valid(document: Any) -> None:
    OpenAPIV31SpecValidator(document).validate()


async def test_every_group_of_routes_has_a_name(document: Any) -> None:
    assert [tag for tag in document["tags"] if not tag["name"]] == []


async def test_every_error_code_is_named_by_its_status(document: Any) -> None:
    for error in all_errors():
        schema = document["components"]["responses"][f"Error{error.status}"]["content"]["application/json"][
            "schema"
        ]
        assert error.code in schema["properties"]["error"]["properties"]["code"]["enum"]


async def test_the_viewer_loads_from_here_and_runs_nothing_inline(stranger: Http) -> None:
    page = await stranger.ask("GET", "/docs")
    assert page.status == 200
    assert "unsafe" not in page.headers["Content-Security-Policy"]
    assert page.headers["X-Content-Type-Options"] == "nosniff"
    assert b"http" not in page.body
    for path in ("/docs/start.js", "/docs/swagger-ui-bundle.js", "/docs/swagger-ui.css"):
        assert path.encode() in page.body
        assert (await stranger.ask("GET", path)).status == 200
    for name, pinned in INTEGRITY.items():  # else a browser refuses what is installed here
        digest = hashlib.sha384((await stranger.ask("GET", f"/docs/{name}")).body).digest()
        assert f'integrity="{pinned}"'.encode() in page.body
        assert pinned == f"sha384-{base64.b64encode(digest).decode()}"
