"""Bad input over HTTP: the API's own error with the right status, and nothing left running on the workers."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from client.gateway.anthropic_request import MessagesRequest
from client.gateway.ollama_models import EmbedRequest
from client.gateway.ollama_request import OllamaChat, OllamaGenerate
from client.gateway.openai_chat_request import ChatRequest
from client.gateway.openai_completions import CompletionRequest
from client.gateway.openai_embeddings import EmbeddingRequest
from client.gateway.openai_responses_request import ResponseRequest
from tests.support.gateways import Answered, ServedGateway, gateway_cluster
from tests.support.waiting import eventually

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

CHAT, MESSAGES, OLLAMA = "/v1/chat/completions", "/v1/messages", "/api/chat"
HI: list[Any] = [{"role": "user", "content": "hi"}]
MANY = 10_000_000
ODD: tuple[Any, ...] = (-1, 1e308, "?", [], {"a": {"b": [None]}})


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """What can be posted to a path, and a request that is answered."""

    kind: type[msgspec.Struct]
    asked: dict[str, Any]

    def with_prompt(self, text: str) -> dict[str, Any]:
        """The same with this text."""
        name = next(name for name in ("messages", "prompt", "input") if name in self.asked)
        return self.asked | {name: [{"role": "user", "content": text}] if name == "messages" else text}


APIS = {
    CHAT: Api(kind=ChatRequest, asked={"messages": HI, "max_tokens": 2}),
    "/v1/completions": Api(kind=CompletionRequest, asked={"prompt": "hi", "max_tokens": 2}),
    "/v1/responses": Api(kind=ResponseRequest, asked={"input": "hi", "max_output_tokens": 2}),
    "/v1/embeddings": Api(kind=EmbeddingRequest, asked={"input": "hi"}),
    MESSAGES: Api(kind=MessagesRequest, asked={"messages": HI, "max_tokens": 2}),
    OLLAMA: Api(kind=OllamaChat, asked={"messages": HI, "options": {"num_predict": 2}}),
    "/api/generate": Api(kind=OllamaGenerate, asked={"prompt": "hi", "options": {"num_predict": 2}}),
    "/api/embed": Api(kind=EmbedRequest, asked={"input": "hi", "truncate": False}),
}
WEATHER: dict[str, Any] = {
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"]},
}
OPENAI_TOOL, ANTHROPIC_TOOL = (
    {"type": "function", "function": WEATHER},
    {"name": "weather", "input_schema": WEATHER["parameters"]},
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ServedGateway]:
    """With room for what is told of tools: a token is a byte."""
    async with gateway_cluster(tmp_path_factory.mktemp("gateway"), context=2048) as running:
        yield running


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def nothing_left(served: ServedGateway) -> AsyncIterator[None]:
    """After every test of this file."""
    yield
    await eventually(lambda: served.sessions_on_workers() == 0 and served.gateway.gate.n_inside == 0)


def message_of(path: str, answer: Answered) -> str:
    """What the error says; it has the shape of the path's API."""
    body = answer.json()
    if path.startswith("/api/"):
        assert body.keys() == {"error"}
        return str(body["error"])
    kinds = {"type", "message"} if path.startswith(MESSAGES) else {"message", "type", "param", "code"}
    assert body["error"].keys() == kinds
    return str(body["error"]["message"])


async def refusal(served: ServedGateway, path: str, body: dict[str, Any], status: int = 400) -> str:
    """What is said to this request, of a stream and of a whole answer alike."""
    said = {}
    for stream in (False, True):
        streamed = {"stream": stream} if "stream" in APIS[path].kind.__struct_fields__ else {}
        answer = await served.post(path, {"model": "tiny"} | body | streamed)
        assert answer.status == status, answer.body[:1000]
        said[stream] = message_of(path, answer)
    assert said[False] == said[True]
    return said[True]


@pytest.mark.parametrize("path", APIS)
async def test_prompts_of_ten_megabytes_are_refused(served: ServedGateway, path: str) -> None:
    said = await refusal(served, path, APIS[path].with_prompt("a" * MANY))
    assert "context" in said


@pytest.mark.parametrize("path", APIS)
async def test_unknown_models_and_fields_are_refused(served: ServedGateway, path: str) -> None:
    asked = APIS[path].asked
    assert "there are: tiny" in await refusal(served, path, asked | {"model": "nosuch"}, 404)
    assert "nosuch" in await refusal(served, path, asked | {"nosuch": 1})


@pytest.mark.parametrize("path", APIS)
async def test_no_odd_value_of_any_field_is_our_fault(served: ServedGateway, path: str) -> None:
    """Answered where the value means something, refused as the caller's otherwise."""
    api = APIS[path]
    bodies: Iterator[dict[str, Any]] = (
        {"model": "tiny"} | api.asked | {name: value}
        for name, value in itertools.product(api.kind.__struct_fields__, ODD)
    )

    async def post_them() -> None:
        for body in bodies:
            answer = await served.post(path, body)
            assert answer.status < 500, (body, answer.body)
            if answer.status != 200:
                assert len(message_of(path, answer)) < 1000

    async with asyncio.TaskGroup() as tasks:
        for _ in range(4):
            tasks.create_task(post_them())


@pytest.mark.parametrize(
    ("path", "change"),
    [
        (
            CHAT,
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]},
        ),
        (
            "/v1/responses",
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:,"}]}]},
        ),
        (MESSAGES, {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "base64"}}]}]}),
        (OLLAMA, {"messages": [{"role": "user", "content": "what is this?", "images": ["aGk="]}]}),
        ("/api/generate", {"images": ["aGk="]}),
    ],
)
async def test_images_are_refused(served: ServedGateway, path: str, change: dict[str, Any]) -> None:
    assert "image" in await refusal(served, path, APIS[path].asked | change)


@pytest.mark.parametrize(
    ("path", "change"),
    [
        *((path, {"regex": "("}) for path in (CHAT, "/v1/completions", "/v1/responses")),
        *((path, {"grammar": "start: nosuch"}) for path in (CHAT, "/v1/completions", "/v1/responses")),
        (CHAT, {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": 7}}}}),
        (CHAT, {"structured_outputs": {"json": "{"}}),
        ("/v1/responses", {"text": {"format": {"type": "json_schema", "name": "a", "schema": {"$ref": "#/no"}}}}),
        (MESSAGES, {"output_config": {"format": {"type": "json_schema", "schema": {"type": 7}}}}),
        (OLLAMA, {"format": {"type": 7}}),
        (CHAT, {"tools": [{"type": "function", "function": {"name": "weather", "parameters": {"type": "array"}}}]}),
        (MESSAGES, {"tools": [{"name": "weather", "input_schema": {"type": "array"}}]}),
    ],
)
async def test_schemas_that_are_none_are_refused(served: ServedGateway, path: str, change: dict[str, Any]) -> None:
    assert await refusal(served, path, APIS[path].asked | change)


async def test_arguments_that_are_no_json_are_taken_back_as_text_where_the_api_has_text(
    served: ServedGateway,
) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city'}}
    talk = [
        *HI,
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": ""},
    ]
    answer = await served.post(CHAT, {"model": "tiny", "messages": talk, "tools": [OPENAI_TOOL], "max_tokens": 2})
    assert answer.status == 200, answer.body
    used = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": '{"city'}
    assert "input" in await refusal(
        served, MESSAGES, {"messages": [*HI, {"role": "assistant", "content": [used]}], "max_tokens": 2}
    )
    called = {"role": "assistant", "tool_calls": [{"function": {"name": "weather", "arguments": '{"city'}}]}
    assert "arguments" in await refusal(served, OLLAMA, {"messages": [*HI, called]})


async def test_calls_that_are_cut_amid_their_arguments_are_told_as_they_are(served: ServedGateway) -> None:
    """Up to the argument's value: `<tool_call>`, the name, and some of the JSON; a token is a byte."""
    asked = {"model": "tiny", "messages": HI, "max_tokens": 50, "temperature": 0}
    tools: dict[str, Any] = {"tools": [OPENAI_TOOL], "tool_choice": "required"}
    (choice,) = (await served.post(CHAT, asked | tools)).json()["choices"]
    assert choice["finish_reason"] == "length"
    arguments = choice["message"]["tool_calls"][0]["function"]["arguments"]
    assert arguments.startswith("{")
    with pytest.raises(json.JSONDecodeError):
        json.loads(arguments)
    tools = {"tools": [ANTHROPIC_TOOL], "tool_choice": {"type": "any"}}
    anthropic = (await served.post(MESSAGES, asked | tools)).json()
    assert anthropic["stop_reason"] == "max_tokens"
    assert anthropic["content"][0]["input"] == {"INVALID_JSON": arguments}


@pytest.mark.parametrize("path", [path for path in APIS if path not in ("/v1/embeddings", "/api/embed")])
async def test_whoever_goes_away_leaves_nothing_running(served: ServedGateway, path: str) -> None:
    limits = {"max_tokens": 1900, "max_output_tokens": 1900, "options": {"num_predict": 1900}}
    asked = {name: limits.get(name, value) for name, value in APIS[path].asked.items()}
    async with served.http.post(
        served.gateway.url + path, json={"model": "tiny", "stream": True} | asked
    ) as response:
        await response.content.readany()
        assert served.sessions_on_workers() > 0
        response.close()


@pytest.mark.parametrize("path", APIS)
async def test_whoever_goes_away_amid_the_request_leaves_nothing_behind(served: ServedGateway, path: str) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", served.gateway.port)
    head = ["Host: 127.0.0.1", "Content-Type: application/json", "Content-Length: 1000", "", '{"model": "tiny", ']
    writer.write("\r\n".join([f"POST {path} HTTP/1.1", *head]).encode())
    await eventually(lambda: served.gateway.gate.n_inside == 1)
    writer.transport.abort()
