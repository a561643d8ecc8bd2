"""OpenAI's npm package under Node against the gateway; its program is tests/node/openai.mjs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from protocol.key_limits import KeyLimits
from tests.support.coordinators import key_of
from tests.support.gateways import ServedGateway, gateway_cluster
from tests.support.node_programs import installed_packages, node_answer
from tests.support.waiting import eventually

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ServedGateway]:
    """With room for what is told of tools: a token is a byte."""
    await asyncio.to_thread(installed_packages)
    async with gateway_cluster(tmp_path_factory.mktemp("gateway"), context=2048) as running:
        yield running


async def done(served: ServedGateway, what: str, key: str | None = None) -> Any:
    key = key or key_of(served.cluster.coordinator, "client")
    return await node_answer("openai.mjs", what, BASE_URL=f"{served.gateway.url}/v1", API_KEY=key)


async def test_a_chat_whole_and_streamed_is_the_same(served: ServedGateway) -> None:
    said = await done(served, "chat")
    assert said["whole"] == said["streamed"]
    assert said["wholeUsage"]["total_tokens"] == said["streamedUsage"]["total_tokens"] > 0


async def test_responses_vectors_and_models_are_had(served: ServedGateway) -> None:
    said = await done(served, "others")
    assert said["response"] == said["streamed"]
    assert said["asBytes"] == pytest.approx(said["asNumbers"], abs=1e-5)
    assert said["models"] == ["tiny"]


async def test_a_tool_is_called_and_its_result_taken(served: ServedGateway) -> None:
    said = await done(served, "tools")
    (given,) = said["called"]
    assert given["city"] in ("Rome", "Oslo")
    assert said["roles"] == ["user", "assistant", "tool"]
    assert said["finish"] in ("stop", "length")


async def test_errors_are_thrown_as_openais_own(served: ServedGateway) -> None:
    said = await done(served, "errors")
    assert {name: (error["kind"], error["status"], error["code"]) for name, error in said.items()} == {
        "model": ("NotFoundError", 404, "model_not_found"),
        "streamed": ("NotFoundError", 404, "model_not_found"),
        "key": ("AuthenticationError", 401, "invalid_api_key"),
        "field": ("BadRequestError", 400, "unknown_parameter"),
        "context": ("BadRequestError", 400, "context_length_exceeded"),
    }
    assert said["field"]["param"] == "colour"
    assert all(error["hasRequestId"] for error in said.values())
    key = await served.cluster.new_key(KeyLimits(requests_per_min=1))
    limited = await done(served, "limited", key.key)
    assert (limited["kind"], limited["code"]) == ("RateLimitError", "rate_limit_exceeded")
    assert 1 <= limited["retryAfter"] <= 60


async def test_whoever_leaves_leaves_nothing_running(served: ServedGateway) -> None:
    said = await done(served, "leave")
    assert said["n"] > 0
    assert said["isAborted"]
    await eventually(lambda: served.sessions_on_workers() == 0 and served.gateway.gate.n_inside == 0)
