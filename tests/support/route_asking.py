"""Asking a coordinator for routes as a client does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from coordinator.app import RunningCoordinator
from protocol.ids import ModelName
from protocol.rest import ErrorAnswer, RouteGrant, RouteRequest
from tests.support.coordinators import Answer, Http, http_session, key_of, running_coordinator
from tests.support.stored_model import add_model

TINY = ModelName("tiny")


@pytest.fixture
async def coordinator(tmp_path: Path) -> AsyncIterator[RunningCoordinator]:
    async with running_coordinator(tmp_path) as running:
        await add_model(running)
        yield running


@pytest.fixture
async def http(coordinator: RunningCoordinator) -> AsyncIterator[Http]:
    async with http_session(coordinator, key_of(coordinator, "client")) as session:
        yield session


@pytest.fixture
async def admin(coordinator: RunningCoordinator) -> AsyncIterator[Http]:
    async with http_session(coordinator, key_of(coordinator, "admin")) as session:
        yield session


def wanted(**changes: object) -> RouteRequest:
    return RouteRequest(**({"model": TINY, "n_prompt_tokens": 3, "max_tokens": 5} | changes))  # type: ignore[arg-type]


async def ask(http: Http, **changes: object) -> Answer:
    return await http.ask("POST", "/v1/routes", wanted(**changes))


async def granted(http: Http, **changes: object) -> RouteGrant:
    answer = await ask(http, **changes)
    assert answer.status == 200, answer.body
    return answer.read(RouteGrant)


def code_of(answer: Answer) -> str:
    return answer.read(ErrorAnswer).error.code
