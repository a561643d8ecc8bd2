"""OpenAI's own Python package against the gateway; it is told to refuse answers that aren't of its types."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
import pytest_asyncio

from protocol.key_limits import KeyLimits
from tests.support.coordinators import key_of
from tests.support.gateways import ENDS, ServedGateway
from tests.support.waiting import eventually

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

HI: Any = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "hi"}]
CHAT: dict[str, Any] = {"model": "tiny", "messages": HI, "max_tokens": 8, "temperature": 0, "logit_bias": ENDS}
LONG = CHAT | {"max_tokens": 400}


def options_of(served: ServedGateway, **changes: Any) -> dict[str, Any]:
    """What either of the package's clients is made with."""
    own = {
        "base_url": f"{served.gateway.url}/v1",
        "api_key": key_of(served.cluster.coordinator, "client"),
        "max_retries": 0,
        "timeout": 30.0,
        "_strict_response_validation": True,
    }
    return own | changes


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(served: ServedGateway) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(**options_of(served)) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lenient_client(served: ServedGateway) -> AsyncIterator[openai.AsyncOpenAI]:
    """For what the package's types don't know of its own API: texts that go on, and vectors as bytes."""
    async with openai.AsyncOpenAI(**options_of(served, _strict_response_validation=False)) as made:
        yield made


async def test_a_chat_whole_and_streamed_is_the_same(client: openai.AsyncOpenAI) -> None:
    asked = CHAT | {"n": 2, "seed": 7, "temperature": 1.5, "user": "u", "logprobs": True, "top_logprobs": 2}
    whole = await client.chat.completions.create(**asked)
    assert [choice.index for choice in whole.choices] == [0, 1]
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 16
    texts, tokens = ["", ""], [[], []]  # type: tuple[list[str], list[list[Any]]]
    usage = None
    stream = await client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    async for chunk in stream:
        usage = chunk.usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            tokens[choice.index] += (choice.logprobs.content or []) if choice.logprobs else []
    assert texts == [choice.message.content for choice in whole.choices]
    for choice, streamed in zip(whole.choices, tokens, strict=True):
        assert choice.logprobs is not None
        assert choice.logprobs.content is not None
        assert [one.bytes for one in choice.logprobs.content] == [one.bytes for one in streamed]
        for one, other in zip(choice.logprobs.content, streamed, strict=True):
            assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
            assert len(one.top_logprobs) == len(other.top_logprobs) == 2
    assert usage is not None
    assert usage.total_tokens == whole.usage.total_tokens


async def test_the_client_that_isnt_asynchronous_does_the_same(served: ServedGateway) -> None:
    def asked() -> tuple[str | None, str]:
        with openai.OpenAI(**options_of(served)) as made:
            whole = made.chat.completions.create(**CHAT)
            with made.chat.completions.stream(**CHAT) as stream:
                pieces = [event.delta for event in stream if event.type == "content.delta"]
            return whole.choices[0].message.content, "".join(pieces)

    text, streamed = await asyncio.to_thread(asked)
    assert text == streamed


async def test_texts_go_on_whole_and_streamed(
    client: openai.AsyncOpenAI, lenient_client: openai.AsyncOpenAI
) -> None:
    asked: Any = {
        "model": "tiny",
        "prompt": ["the inn", "in the"],
        "max_tokens": 4,
        "temperature": 0,
        "logprobs": 1,
    }
    whole = await client.completions.create(**asked)
    texts = ["", ""]
    async for chunk in await lenient_client.completions.create(**asked, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [choice.text for choice in whole.choices]
    with pytest.raises(openai.NotFoundError):
        await client.completions.create(**asked | {"model": "nosuch"}, stream=True)


async def test_a_response_whole_and_streamed_is_the_same_and_can_be_sent_back(client: openai.AsyncOpenAI) -> None:
    asked: Any = {"model": "tiny", "input": "hi", "instructions": "Be brief.", "temperature": 0, "store": False}
    asked |= {"extra_body": {"regex": "[ab]{3}"}}
    whole = await client.responses.create(**asked)
    assert (whole.status, len(whole.output_text)) == ("completed", 3)
    assert whole.usage is not None
    assert whole.usage.output_tokens > 0
    async with client.responses.stream(**asked) as stream:
        pieces = [event.delta async for event in stream if event.type == "response.output_text.delta"]
        final = await stream.get_final_response()
    assert "".join(pieces) == final.output_text == whole.output_text
    both: Any = [{"role": "user", "content": "hi"}, *whole.output, {"role": "user", "content": "and?"}]
    after = await client.responses.create(**asked | {"input": both, "max_output_tokens": 2})
    assert (after.status, after.usage is not None) == ("incomplete", True)
    with pytest.raises(openai.BadRequestError, match="instructions"):
        await client.responses.create(**asked | {"instructions": 5}, stream=True)


async def test_vectors_are_the_same_however_they_travel(
    client: openai.AsyncOpenAI, lenient_client: openai.AsyncOpenAI
) -> None:
    as_bytes = await lenient_client.embeddings.create(model="tiny", input=["the inn", "in the"])
    as_numbers = await client.embeddings.create(model="tiny", input=["the inn", "in the"], encoding_format="float")
    for one, other in zip(as_bytes.data, as_numbers.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-5)
    assert as_bytes.usage.prompt_tokens == as_numbers.usage.prompt_tokens > 0
    with pytest.raises(openai.BadRequestError) as raised:
        await client.embeddings.create(model="tiny", input="a" * 9000)
    assert (raised.value.param, raised.value.code) == ("input", "context_length_exceeded")


async def test_models_are_listed_and_one_is_found(client: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == ["tiny"]
    assert (await client.models.retrieve("tiny")).owned_by == "brigade"
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("nosuch")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("changes", "error", "param", "code"),
    [
        ({"model": "nosuch"}, openai.NotFoundError, "model", "model_not_found"),
        ({"extra_body": {"colour": "red"}}, openai.BadRequestError, "colour", "unknown_parameter"),
        ({"messages": [{"role": "user", "content": "a" * 9000}]}, openai.BadRequestError, "messages", "context"),
        ({"max_tokens": "many"}, openai.BadRequestError, "max_tokens", None),
        ({"extra_headers": {"Authorization": "Bearer sk-0"}}, openai.AuthenticationError, None, "invalid_api_key"),
    ],
)
async def test_errors_are_raised_as_openais_own(
    client: openai.AsyncOpenAI,
    changes: dict[str, Any],
    error: type[openai.APIStatusError],
    param: str | None,
    code: str | None,
    stream: bool,
) -> None:
    with pytest.raises(error) as raised:
        await client.chat.completions.create(**CHAT | changes, stream=stream)
    assert raised.value.param == param
    assert (raised.value.code or "").startswith(code or "")
    assert raised.value.request_id
    assert set(json.loads(raised.value.response.content)["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("stream", [False, True])
async def test_headers_say_what_is_left_of_the_keys_limits(served: ServedGateway, stream: bool) -> None:
    """Of tokens the rate that has less left; a prompt of 26 and 8 more are taken off.

    So few requests that none comes back while a busy machine answers: that takes half a minute.
    """
    key = await served.cluster.new_key(KeyLimits(requests_per_min=2, tokens_per_min=10_000, tokens_per_day=5_000))
    async with openai.AsyncOpenAI(**options_of(served, api_key=key.key)) as limited:
        resets = {1: ("30s", "29s"), 2: ("1m0s", *(f"{seconds}s" for seconds in range(31, 60)))}
        for n_asked in (1, 2):
            answer = await limited.chat.completions.with_raw_response.create(**CHAT, stream=stream)
            headers = {name: value for name, value in answer.headers.items() if name.startswith("x-ratelimit")}
            assert headers["x-ratelimit-limit-requests"] == "2"
            assert headers["x-ratelimit-remaining-requests"] == str(2 - n_asked)
            assert headers["x-ratelimit-reset-requests"] in resets[n_asked]
            assert headers["x-ratelimit-limit-tokens"] == "5000"
            n_left = int(headers["x-ratelimit-remaining-tokens"])
            assert 5000 - n_asked * 100 < n_left < 5000 - 8
            assert re.fullmatch(r"(\d+h)?(\d+m)?\d+s", headers["x-ratelimit-reset-tokens"])
            if stream:
                assert [chunk async for chunk in answer.parse()]


async def test_headers_say_it_where_a_limit_is_used_up_and_of_vectors(served: ServedGateway) -> None:
    key = await served.cluster.new_key(KeyLimits(requests_per_min=2, tokens_per_min=10_000))
    async with openai.AsyncOpenAI(**options_of(served, api_key=key.key)) as limited:
        vectors = await limited.embeddings.with_raw_response.create(model="tiny", input=["the inn", "in the"])
        assert vectors.headers["x-ratelimit-remaining-requests"] == "0"
        assert 9_900 < int(vectors.headers["x-ratelimit-remaining-tokens"]) < 10_000
        for ask in (
            limited.chat.completions.create(**CHAT),
            limited.chat.completions.create(**CHAT, stream=True),
            limited.embeddings.create(model="tiny", input="the inn"),
        ):
            with pytest.raises(openai.RateLimitError) as raised:
                await ask
            headers = raised.value.response.headers
            assert headers["x-ratelimit-limit-requests"] == "2"
            assert headers["x-ratelimit-remaining-requests"] == "0"
            assert headers["x-ratelimit-limit-tokens"] == "10000"
            assert headers["x-ratelimit-reset-requests"].endswith("s")
            assert int(headers["Retry-After"]) <= 60


async def test_a_key_without_limits_has_no_such_headers(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.with_raw_response.create(**CHAT)
    assert not [name for name in answer.headers if name.startswith("x-ratelimit")]


async def test_a_limit_is_waited_for_as_long_as_the_answer_says(served: ServedGateway) -> None:
    key = await served.cluster.new_key(KeyLimits(max_concurrent=1))
    async with openai.AsyncOpenAI(**options_of(served, api_key=key.key)) as limited:
        running = await limited.chat.completions.create(**LONG, stream=True)
        await anext(running)
        with pytest.raises(openai.RateLimitError) as raised:
            await limited.chat.completions.create(**CHAT)
        assert raised.value.code == "rate_limit_exceeded"
        wait_s = float(raised.value.response.headers["Retry-After"])

        now_s = asyncio.get_running_loop().time
        refused_at_s: list[float] = []

        async def make_room(response: Any) -> None:
            if response.status_code == 429:
                refused_at_s.append(now_s())
                await running.close()

        hooked = openai.DefaultAsyncHttpxClient(event_hooks={"response": [make_room]})
        options = options_of(served, api_key=key.key, max_retries=1, http_client=hooked)
        async with openai.AsyncOpenAI(**options) as patient:
            answer = await patient.chat.completions.with_raw_response.create(**CHAT)
        assert answer.retries_taken == 1
        assert now_s() - refused_at_s[0] >= wait_s
        assert answer.parse().choices[0].message.content


@pytest.mark.parametrize("stream", [False, True])
async def test_whoever_gives_up_leaves_nothing_running(
    served: ServedGateway, client: openai.AsyncOpenAI, stream: bool
) -> None:
    if stream:
        running = await client.chat.completions.create(**LONG, stream=True)
        await anext(running)
        assert served.sessions_on_workers() > 0
        await running.close()
    else:
        async with asyncio.TaskGroup() as tasks:
            asking = tasks.create_task(client.chat.completions.create(**LONG))
            await eventually(lambda: served.sessions_on_workers() > 0)
            asking.cancel()
    await eventually(lambda: served.sessions_on_workers() == 0 and served.gateway.gate.n_inside == 0)
