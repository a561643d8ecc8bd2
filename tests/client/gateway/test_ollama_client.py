"""Ollama's own Python package against the gateway."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import ollama
import pytest
import pytest_asyncio

from protocol.key_limits import KeyLimits
from tests.support.coordinators import bearer
from tests.support.gateways import ServedGateway, gateway_cluster

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

HI: Any = [{"role": "user", "content": "hi"}]
SHORT: Any = {"num_predict": 12, "temperature": 0, "num_ctx": 2048}
CITY: Any = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Oslo"]}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER: Any = {"type": "function", "function": {"name": "weather", "parameters": CITY}}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ServedGateway]:
    """With room for what is told of tools: a token is a byte."""
    async with gateway_cluster(tmp_path_factory.mktemp("gateway"), context=2048) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(served: ServedGateway) -> AsyncIterator[ollama.AsyncClient]:
    async with ollama.AsyncClient(host=served.gateway.url, timeout=30.0) as made:
        yield made


async def test_a_chat_whole_and_streamed_is_the_same(client: ollama.AsyncClient) -> None:
    whole = await client.chat(model="tiny:latest", messages=HI, options=SHORT)
    pieces = [piece async for piece in await client.chat(model="tiny", messages=HI, options=SHORT, stream=True)]
    assert "".join(piece.message.content or "" for piece in pieces) == whole.message.content
    last = pieces[-1]
    assert [piece.done for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert (last.done_reason, last.eval_count) == (whole.done_reason, whole.eval_count)
    assert last.prompt_eval_count == whole.prompt_eval_count
    assert (last.total_duration or 0) > 0


async def test_text_is_generated_with_and_without_the_template(client: ollama.AsyncClient) -> None:
    laid_out = await client.generate(model="tiny", prompt="hi", system="Be brief.", options=SHORT)
    raw = await client.generate(model="tiny", prompt="hi", raw=True, options=SHORT)
    assert raw.prompt_eval_count == 3  # <s>, h, i
    assert (laid_out.prompt_eval_count or 0) > 3
    pieces = [one async for one in await client.generate(model="tiny", prompt="hi", options=SHORT, stream=True)]
    assert pieces[-1].done_reason in ("stop", "length")
    assert (await client.generate(model="tiny")).done_reason == "load"


async def test_an_answer_is_held_to_a_schema(client: ollama.AsyncClient) -> None:
    answer = await client.chat(model="tiny", messages=HI, format=CITY, options={"num_predict": 200})
    assert json.loads(answer.message.content or "")["city"] in ("Rome", "Oslo")


async def test_a_call_and_its_result_are_taken_back(client: ollama.AsyncClient) -> None:
    call: Any = {
        "role": "assistant",
        "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Rome"}}}],
    }
    result: Any = {"role": "tool", "tool_name": "weather", "content": "sunny"}
    answer = await client.chat(model="tiny", messages=[*HI, call, result], tools=[WEATHER], options=SHORT)
    assert answer.done
    assert answer.message.content or answer.message.tool_calls
    with pytest.raises(ollama.ResponseError, match="no assistant message before it"):
        await client.chat(model="tiny", messages=[*HI, result], tools=[WEATHER], options=SHORT)


async def test_texts_become_vectors(client: ollama.AsyncClient) -> None:
    found = await client.embed(model="tiny", input=["one", "two"], dimensions=8)
    assert [len(vector) for vector in found.embeddings] == [8, 8]
    assert sum(number**2 for number in found.embeddings[0]) == pytest.approx(1.0, abs=1e-5)
    older = await client.embeddings(model="tiny", prompt="one")
    assert len(older.embedding) > 8
    with pytest.raises(ollama.ResponseError) as raised:
        await client.embed(model="tiny", input="a" * 3000, truncate=False)
    assert raised.value.status_code == 400


async def test_models_are_listed_and_shown(client: ollama.AsyncClient) -> None:
    (listed,) = (await client.list()).models
    (running,) = (await client.ps()).models
    assert listed.model == running.model == "tiny"
    shown = await client.show("tiny")
    assert "tools" in (shown.capabilities or [])
    assert shown.modelinfo is not None
    assert shown.modelinfo["general.architecture"] in str(shown.details)


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        ({"model": "nosuch"}, 404, "there are: tiny"),
        ({"options": {"nosuch": 1}}, 400, "Unknown option: nosuch"),
        ({"options": {"mirostat": 2}}, 400, "mirostat"),
        ({"options": {"temperature": "hot"}}, 400, "temperature isn't a number"),
        ({"messages": [{"role": "user", "images": ["aGk="]}]}, 400, "no images"),
        ({"messages": [{"role": "king", "content": "hi"}]}, 400, "role is 'king'"),
        ({"think": True}, 400, "think"),
        ({"format": {"type": 7}}, 400, ""),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_errors_are_raised_as_ollamas_own(
    client: ollama.AsyncClient, options: dict[str, Any], status: int, words: str, stream: bool
) -> None:
    asked: Any = {"model": "tiny", "messages": HI} | options
    with pytest.raises(ollama.ResponseError) as raised:
        await _read(client, asked, stream=stream)
    assert raised.value.status_code == status
    assert words in raised.value.error


async def _read(client: ollama.AsyncClient, asked: Any, *, stream: bool) -> None:
    answer: Any = await client.chat(**asked, stream=stream)
    if stream:
        async for _ in answer:
            pass


async def test_keys_that_dont_count_and_limits_are_raised_as_ollamas_own(served: ServedGateway) -> None:
    limited = await served.cluster.new_key(KeyLimits(requests_per_min=1))
    for key, statuses in (("ollama", (401,)), (limited.key, (200, 429))):
        async with ollama.AsyncClient(host=served.gateway.url, timeout=30.0, headers=bearer(key)) as client:
            for status in statuses:
                if status == 200:
                    await client.chat(model="tiny", messages=HI, options=SHORT)
                    continue
                with pytest.raises(ollama.ResponseError) as raised:
                    await client.chat(model="tiny", messages=HI, options=SHORT)
                assert raised.value.status_code == status


async def test_headers_say_what_is_left_of_the_keys_limits(served: ServedGateway) -> None:
    """Those of OpenAI's API: Ollama's has none."""
    key = await served.cluster.new_key(KeyLimits(requests_per_min=2))
    asked: dict[str, Any] = {"model": "tiny", "messages": HI, "options": SHORT, "stream": False}
    for path, body, status, n_left in (
        ("/api/chat", asked, 200, "1"),
        ("/api/embed", {"model": "tiny", "input": "the inn"}, 200, "0"),
        ("/api/chat", asked, 429, "0"),
    ):
        answer = await served.post(path, body, headers=bearer(key.key))
        assert (answer.status, answer.headers["x-ratelimit-remaining-requests"]) == (status, n_left), path


async def test_ollamas_program_finds_somebody_there(served: ServedGateway) -> None:
    assert (await served.ask("HEAD", "/")).status == 200
    assert (await served.ask("GET", "/api/version")).json().keys() == {"version"}
    assert (await served.ask("GET", "/api/nosuch")).json().keys() == {"error"}


async def test_what_is_up_to_operators_is_refused(client: ollama.AsyncClient) -> None:
    for attempt in (client.pull("tiny"), client.delete("tiny"), client.copy("tiny", "other")):
        with pytest.raises(ollama.ResponseError, match="coord model add") as raised:
            await attempt
        assert raised.value.status_code == 403
