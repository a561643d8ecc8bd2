"""Anthropic's own Python package against the gateway."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any

import anthropic
import pytest
import pytest_asyncio

from protocol.key_limits import KeyLimits
from tests.support.coordinators import key_of
from tests.support.gateways import ServedGateway, gateway_cluster
from tests.support.waiting import eventually

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

WEATHER: Any = {
    "name": "weather",
    "description": "How the weather is",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"enum": ["Rome", "Oslo"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
GREEDY = {"temperature": 0.0}
"""The newest package has no argument for it, the API has."""
HI: Any = [{"role": "user", "content": "hi"}]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ServedGateway]:
    """With room for what is told of tools: a token is a byte."""
    async with gateway_cluster(tmp_path_factory.mktemp("gateway"), context=2048) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(served: ServedGateway) -> AsyncIterator[anthropic.AsyncAnthropic]:
    key = key_of(served.cluster.coordinator, "client")
    async with anthropic.AsyncAnthropic(
        base_url=served.gateway.url, api_key=key, max_retries=0, timeout=30.0
    ) as made:
        yield made


@pytest.mark.parametrize("stream", [False, True])
async def test_headers_say_what_is_left_of_the_keys_limits(served: ServedGateway, stream: bool) -> None:
    key = await served.cluster.new_key(KeyLimits(requests_per_min=60, tokens_per_min=6_000))
    asked: Any = {"model": "tiny", "max_tokens": 12, "messages": HI, "extra_body": GREEDY, "stream": stream}
    async with anthropic.AsyncAnthropic(
        base_url=served.gateway.url, api_key=key.key, max_retries=0, timeout=30.0
    ) as limited:
        answer = await limited.messages.with_raw_response.create(**asked)
        if stream:
            assert [event async for event in await answer.parse()]
    headers = answer.headers
    assert headers["anthropic-ratelimit-requests-limit"] == "60"
    assert headers["anthropic-ratelimit-requests-remaining"] == "59"
    assert headers["anthropic-ratelimit-tokens-limit"] == "6000"
    assert 5_800 < int(headers["anthropic-ratelimit-tokens-remaining"]) < 6_000 - 12
    full_at = datetime.fromisoformat(headers["anthropic-ratelimit-tokens-reset"])
    assert 0 < (full_at - parsedate_to_datetime(headers["Date"])).total_seconds() < 4
    assert not [name for name in headers if name.startswith("x-ratelimit")]


async def test_headers_say_it_where_a_limit_is_used_up(served: ServedGateway) -> None:
    key = await served.cluster.new_key(KeyLimits(requests_per_min=1, tokens_per_min=6_000))
    asked: Any = {"model": "tiny", "max_tokens": 4, "messages": HI, "extra_body": GREEDY}
    async with anthropic.AsyncAnthropic(
        base_url=served.gateway.url, api_key=key.key, max_retries=0, timeout=30.0
    ) as limited:
        await limited.messages.create(**asked)
        with pytest.raises(anthropic.RateLimitError) as raised:
            await limited.messages.create(**asked)
    headers = raised.value.response.headers
    assert headers["anthropic-ratelimit-requests-remaining"] == "0"
    assert 5_800 < int(headers["anthropic-ratelimit-tokens-remaining"]) <= 6_000
    assert headers["anthropic-ratelimit-tokens-reset"].endswith("Z")


async def test_a_message_whole_and_streamed_is_the_same(client: anthropic.AsyncAnthropic) -> None:
    asked: Any = {"model": "tiny", "max_tokens": 12, "messages": HI, "system": "Be brief.", "extra_body": GREEDY}
    whole = await client.messages.create(**asked)
    assert (whole.role, whole.type, whole.stop_sequence) == ("assistant", "message", None)
    assert whole.stop_reason in ("max_tokens", "end_turn")
    assert 0 < whole.usage.output_tokens <= 12
    async with client.messages.stream(**asked) as stream:
        kinds = [event.type async for event in stream]
        final = await stream.get_final_message()
    assert kinds[0] == "message_start"
    assert kinds[-1] == "message_stop"
    assert [block.model_dump() for block in final.content] == [block.model_dump() for block in whole.content]
    assert final.stop_reason == whole.stop_reason
    total = (final.usage.cache_read_input_tokens or 0) + final.usage.input_tokens
    assert total == (whole.usage.cache_read_input_tokens or 0) + whole.usage.input_tokens
    assert final.usage.output_tokens == whole.usage.output_tokens
    counted = await client.messages.count_tokens(model="tiny", messages=HI, system="Be brief.")
    assert counted.input_tokens == total


async def test_a_stop_sequence_is_named(client: anthropic.AsyncAnthropic) -> None:
    asked: Any = {"model": "tiny", "max_tokens": 30, "messages": HI, "extra_body": GREEDY}
    whole = await client.messages.create(**asked)
    text = whole.content[0].text  # type: ignore[union-attr]
    stop = text[len(text) // 2 :][:2]
    stopped = await client.messages.create(**asked, stop_sequences=[stop])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", stop)
    assert stop not in "".join(block.text for block in stopped.content)  # type: ignore[union-attr]


async def test_a_tool_is_called_and_its_result_taken(client: anthropic.AsyncAnthropic) -> None:
    asked: Any = {
        "model": "tiny",
        "max_tokens": 200,
        "messages": HI,
        "tools": [WEATHER],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
    }
    whole = await client.messages.create(**asked)
    assert whole.stop_reason == "tool_use"
    (block,) = whole.content
    assert block.type == "tool_use"
    assert block.name == "weather"
    assert block.input["city"] in ("Rome", "Oslo")
    async with client.messages.stream(**asked) as stream:
        final = await stream.get_final_message()
    assert [one.type for one in final.content] == ["tool_use"]
    assert final.stop_reason == "tool_use"
    result: Any = {"type": "tool_result", "tool_use_id": block.id, "content": [{"type": "text", "text": "sunny"}]}
    answer: Any = {"role": "assistant", "content": [block.model_dump(exclude_none=True)]}
    after = await client.messages.create(
        model="tiny",
        max_tokens=8,
        messages=[*HI, answer, {"role": "user", "content": [result]}],
        tools=[WEATHER],
        tool_choice={"type": "none"},
    )
    assert after.stop_reason in ("max_tokens", "end_turn")


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"model": "nosuch"}, anthropic.NotFoundError, "there are: tiny"),
        ({"max_tokens": 0}, anthropic.BadRequestError, "max_tokens is 0"),
        ({"messages": []}, anthropic.BadRequestError, "at least one message"),
        ({"extra_body": {"temperature": -1.0}}, anthropic.BadRequestError, "temperature"),
        ({"extra_body": {"nosuch": 1}}, anthropic.BadRequestError, "Unknown field: nosuch"),
        (
            {"extra_headers": {"Authorization": "Bearer sk-ant-0"}},
            anthropic.AuthenticationError,
            "none of this cluster",
        ),
        ({"tool_choice": {"type": "any"}}, anthropic.BadRequestError, "there are none"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
            anthropic.BadRequestError,
            "no images",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "x"}]}]},
            anthropic.BadRequestError,
            "tool call 'x'",
        ),
        (
            {"tools": [WEATHER | {"input_schema": {"type": "string"}}]},
            anthropic.BadRequestError,
            "JSON schema of an object",
        ),
        ({"messages": [{"role": "user", "content": "a" * 9000}]}, anthropic.BadRequestError, "prompt is too long"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_errors_are_raised_as_anthropics_own(
    client: anthropic.AsyncAnthropic,
    changes: dict[str, Any],
    error: type[anthropic.APIStatusError],
    words: str,
    stream: bool,
) -> None:
    asked: Any = {"model": "tiny", "max_tokens": 5, "messages": HI} | changes
    with pytest.raises(error) as raised:
        await client.messages.create(**asked, stream=stream)
    body = json.loads(raised.value.response.content)
    assert body["type"] == "error"
    assert words in body["error"]["message"]


async def test_a_key_may_come_in_anthropics_own_header(served: ServedGateway) -> None:
    asked = {"model": "tiny", "max_tokens": 2, "messages": HI}
    for key, status in (("sk-ant-0", 401), (key_of(served.cluster.coordinator, "client"), 200)):
        answer = await served.post("/v1/messages", asked, headers={"x-api-key": key})
        assert answer.status == status, answer.body
        assert answer.json()["type"] == ("message" if status == 200 else "error")


async def test_a_limit_is_raised_as_anthropics_own_and_says_how_long(served: ServedGateway) -> None:
    key = await served.cluster.new_key(KeyLimits(requests_per_min=1))
    async with anthropic.AsyncAnthropic(
        base_url=served.gateway.url, api_key=key.key, max_retries=0, timeout=30.0
    ) as limited:
        await limited.messages.create(model="tiny", max_tokens=2, messages=HI)
        with pytest.raises(anthropic.RateLimitError) as raised:
            await limited.messages.create(model="tiny", max_tokens=2, messages=HI)
    assert 1 <= int(raised.value.response.headers["Retry-After"]) <= 60


async def test_the_next_turn_is_read_from_the_workers_caches(client: anthropic.AsyncAnthropic) -> None:
    long: Any = [{"role": "user", "content": "Tell me of a bridge. " * 6}]
    first = await client.messages.create(model="tiny", max_tokens=8, messages=long)
    answer: Any = {"role": "assistant", "content": [block.model_dump(exclude_none=True) for block in first.content]}
    then = await client.messages.create(
        model="tiny", max_tokens=8, messages=[*long, answer, {"role": "user", "content": "More."}]
    )
    assert (then.usage.cache_read_input_tokens or 0) > 100
    assert then.usage.input_tokens > 0


@pytest.mark.parametrize("path", ["/v1/messages", "/api/chat"])
async def test_whoever_goes_away_leaves_nothing_running(served: ServedGateway, path: str) -> None:
    asked: dict[str, Any] = {"model": "tiny", "messages": HI, "stream": True}
    asked |= {"max_tokens": 1900} if path == "/v1/messages" else {"options": {"num_predict": 1900}}
    async with served.http.post(served.gateway.url + path, json=asked) as response:
        await response.content.readany()
        assert served.sessions_on_workers() > 0
        response.close()
    await eventually(lambda: served.sessions_on_workers() == 0)
