"""What a model writes, told by each API: the model is a script here, everything from the client on is real."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from client.config import ClientConfig
from client.gateway.app import running
from client.gateway.config import GatewayConfig
from protocol.errors import ErrorBody
from tests.support.scripted_cluster import Script, ScriptedCluster, scripted_cluster
from tests.support.tiny_tokenizer import CHAT_TEMPLATE, ids_of, tiny_files
from tests.support.waiting import eventually

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

CHAT, RESPONSES, MESSAGES, OLLAMA = "/v1/chat/completions", "/v1/responses", "/v1/messages", "/api/chat"
APIS = (CHAT, RESPONSES, MESSAGES, OLLAMA)
TEACHES = "{% if tools %}Call by <tool_call>name and arguments</tool_call>: {{ tools | tojson }}{% endif %}"
HI: list[Any] = [{"role": "user", "content": "hi"}]
CITY: dict[str, Any] = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
NAMES = ("weather", "now")


@dataclass(frozen=True, kw_only=True)
class Peers:
    """The script, and the gateway before it."""

    cluster: ScriptedCluster
    url: str
    http: aiohttp.ClientSession

    async def posted(self, path: str, body: Any) -> tuple[int, str]:
        data = io.BytesIO(json.dumps({"model": "tiny"} | body).encode())
        headers = {"Content-Type": "application/json"}
        async with self.http.post(self.url + path, data=data, headers=headers) as response:
            return response.status, (await response.read()).decode()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def peers(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Peers]:
    folder = tmp_path_factory.mktemp("wire")
    files = tiny_files() | {"chat_template.jinja": (TEACHES + CHAT_TEMPLATE).encode()}
    async with scripted_cluster(folder, files=files, context_length=4000) as cluster:
        own = ClientConfig(url=cluster.url, api_key=cluster.api_key, cache=folder / "cache")
        config = GatewayConfig(cluster=own, listen_port=0, stop_s=5.0)
        async with running(config) as gateway, aiohttp.ClientSession() as http:
            yield Peers(cluster=cluster, url=gateway.url, http=http)
            await eventually(lambda: gateway.gate.n_inside == 0)


def asked(path: str, *, stream: bool, **more: Any) -> dict[str, Any]:
    """A request with tools in the shape of the path's API."""
    functions: list[dict[str, Any]] = [{"name": name, "parameters": CITY} for name in NAMES]
    tools: list[dict[str, Any]] = [{"type": "function", "function": function} for function in functions]
    prompt: dict[str, Any] = {"messages": HI, "tools": tools}
    if path == RESPONSES:
        prompt = {"input": HI, "tools": [{"type": "function"} | function for function in functions]}
    elif path == MESSAGES:
        prompt = {"messages": HI, "max_tokens": 900}
        prompt["tools"] = [{"name": name, "input_schema": CITY} for name in NAMES]
    return prompt | {"stream": stream} | more


Told = tuple[str, list[tuple[str, str]], str]
"""An answer's text, its calls' names and arguments, and why it ended."""


def whole(path: str, body: Any) -> Told:
    if path == CHAT:
        (choice,) = body["choices"]
        called = [call["function"] for call in choice["message"].get("tool_calls", ())]
        calls = [(one["name"], one["arguments"]) for one in called]
        return choice["message"]["content"] or "", calls, choice["finish_reason"]
    if path == RESPONSES:
        text = "".join(item["content"][0]["text"] for item in body["output"] if item["type"] == "message")
        made = [item for item in body["output"] if item["type"] == "function_call"]
        return text, [(item["name"], item["arguments"]) for item in made], body["status"]
    if path == MESSAGES:
        text = "".join(block["text"] for block in body["content"] if block["type"] == "text")
        made = [block for block in body["content"] if block["type"] == "tool_use"]
        return text, [(block["name"], json.dumps(block["input"])) for block in made], body["stop_reason"]
    called = [call["function"] for call in body["message"].get("tool_calls", ())]
    return (
        body["message"]["content"],
        [(c["name"], json.dumps(c["arguments"])) for c in called],
        body["done_reason"],
    )


def streamed(path: str, body: str) -> Told:
    if path == OLLAMA:
        lines = [json.loads(line) for line in body.splitlines() if line]
        calls = [call for line in lines for call in line["message"].get("tool_calls", ())]
        message = {"content": "".join(line["message"]["content"] for line in lines), "tool_calls": calls}
        return whole(path, lines[-1] | {"message": message})
    data = [line[6:] for line in body.split("\n") if line.startswith("data: ")]
    events = [json.loads(line) for line in data if line != "[DONE]"]
    return {CHAT: of_chunks, RESPONSES: of_response_events, MESSAGES: of_message_events}[path](events)


def of_chunks(events: list[Any]) -> Told:
    text, calls, reason = "", list[list[str]](), ""
    for event in events:
        (choice,) = event["choices"]
        text += choice["delta"].get("content") or ""
        reason = choice["finish_reason"] or reason
        for delta in choice["delta"].get("tool_calls", ()):
            if "id" in delta:
                calls.append([delta["function"]["name"], ""])
            calls[delta["index"]][1] += delta["function"]["arguments"]
    return text, [(name, arguments) for name, arguments in calls], reason


def of_response_events(events: list[Any]) -> Told:
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    items = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert items == events[-1]["response"]["output"]
    for number, item in enumerate(items):
        deltas = [one["delta"] for one in events if "delta" in one and one["output_index"] == number]
        is_call = item["type"] == "function_call"
        assert "".join(deltas) == (item["arguments"] if is_call else item["content"][0]["text"])
    return whole(RESPONSES, events[-1]["response"])


def of_message_events(events: list[Any]) -> Told:
    text, calls, reason = "", list[list[str]](), ""
    for event in events:
        if event["type"] == "content_block_start" and event["content_block"]["type"] == "tool_use":
            calls.append([event["content_block"]["name"], ""])
        elif event["type"] == "content_block_delta":
            text += event["delta"].get("text", "")
            if "partial_json" in event["delta"]:
                calls[-1][1] += event["delta"]["partial_json"]
        elif event["type"] == "message_delta":
            reason = event["delta"]["stop_reason"]
    return text, [(name, arguments) for name, arguments in calls], reason


def call(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


ROME, OSLO = '{"city": "Z\u00fcrich \U0001f309"}', '{"city": "Oslo"}'
REASONS = {
    "call": dict(zip(APIS, ("tool_calls", "completed", "tool_use", "stop"), strict=True)),
    "text": dict(zip(APIS, ("stop", "completed", "end_turn", "stop"), strict=True)),
    "cut": dict(zip(APIS, ("length", "incomplete", "max_tokens", "length"), strict=True)),
}
WRITTEN: dict[str, tuple[str, str, list[tuple[str, str]]]] = {
    "one": (call("weather", ROME), "", [("weather", ROME)]),
    "amid text": (
        f"Let me \u2026 {call('weather', ROME)} \U0001f309",
        "Let me \u2026  \U0001f309",
        [("weather", ROME)],
    ),
    "parallel": (f"{call('weather', ROME)}\n{call('now', OSLO)}", "", [("weather", ROME), ("now", OSLO)]),
    "no JSON": (call("weather", "{city: Oslo}"), "", [("weather", "{city: Oslo}")]),
    "half a pair": (call("weather", '{"city": "\\ud83d"}'), "", [("weather", '{"city": "\\ud83d"}')]),
    "half a pair as text": (call("weather", '"\\ud83d"'), "", [("weather", '"\\ud83d"')]),
    "no number": (call("weather", '{"city": NaN}'), "", [("weather", '{"city": NaN}')]),
    "looks like one": ("Write <tool_call> or <tool", "Write <tool_call> or <tool", []),
    "cut": ('<tool_call>{"name": "now", "arguments": {"ci', "", [("now", '{"ci')]),
}


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("path", APIS)
async def test_what_a_model_writes_is_told_whole_and_streamed_alike(peers: Peers, path: str, name: str) -> None:
    written, text, calls = WRITTEN[name]
    peers.cluster.script = Script(answer=tuple(ids_of(written)), finish="length" if name == "cut" else "stop")
    status, body = await peers.posted(path, asked(path, stream=False))
    assert status == 200, body
    told = whole(path, json.loads(body))
    reason = REASONS["cut" if name == "cut" else "call" if calls else "text"][path]
    is_good = name in ("one", "amid text", "parallel")
    as_text = [
        (named, arguments if is_good else json.dumps({"INVALID_JSON": arguments})) for named, arguments in calls
    ]
    as_text = [(named, json.dumps(json.loads(arguments))) for named, arguments in as_text]
    assert told == (text, as_text if path in (MESSAGES, OLLAMA) else calls, reason)
    status, body = await peers.posted(path, asked(path, stream=True))
    assert status == 200, body
    assert streamed(path, body) == ((text, calls, reason) if path == MESSAGES else told)


CHOICES: dict[str, dict[str, Any]] = {
    CHAT: {"required": "required", "now": {"type": "function", "function": {"name": "now"}}, "none": "none"},
    RESPONSES: {"required": "required", "now": {"type": "function", "name": "now"}, "none": "none"},
    MESSAGES: {"required": {"type": "any"}, "now": {"type": "tool", "name": "now"}, "none": {"type": "none"}},
}


@pytest.mark.parametrize("path", CHOICES)
async def test_the_choice_of_a_tool_is_what_the_answer_is_held_to(peers: Peers, path: str) -> None:
    peers.cluster.script = Script(answer=tuple(ids_of(call("now", "{}"))))
    held: dict[str, str | None] = {}
    for name, choice in CHOICES[path].items():
        status, body = await peers.posted(path, asked(path, stream=False, tool_choice=choice))
        assert status == 200, body
        constraint = peers.cluster.sampling.constraint
        held[name] = None if constraint is None else constraint.text
        text, calls, _ = whole(path, json.loads(body))
        assert (bool(text), len(calls)) == ((True, 0) if name == "none" else (False, 1))
    assert held["none"] is None
    assert 'name\\": \\"weather' in (held["required"] or "")
    assert 'name\\": \\"weather' not in (held["now"] or "")
    assert "call )*" not in (held["now"] or "call )*")
    status, body = await peers.posted(path, asked(path, stream=False, tool_choice=CHOICES[path]["now"], tools=[]))
    assert (status, "now" in body) == (400, True), body


@pytest.mark.parametrize("path", CHOICES)
async def test_after_one_call_nothing_more_is_waited_for_if_one_is_asked_for(peers: Peers, path: str) -> None:
    peers.cluster.script = Script(answer=tuple(ids_of(call("now", OSLO) * 2)), stop_short=True)
    alone: dict[str, Any] = {"parallel_tool_calls": False}
    if path == MESSAGES:
        alone = {"tool_choice": {"type": "auto", "disable_parallel_tool_use": True}}
    status, body = await peers.posted(path, asked(path, stream=True, **alone))
    assert status == 200, body
    assert streamed(path, body) == ("", [("now", OSLO)], REASONS["call"][path])
    await eventually(lambda: len(peers.cluster.latest.closed) == len(peers.cluster.workers))


async def test_calls_and_results_of_responses_are_one_message_and_its_answers(peers: Peers) -> None:
    peers.cluster.script = Script(answer=tuple(ids_of("Warm.")))
    items: list[Any] = [
        *HI,
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look."}]},
        {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "weather", "arguments": OSLO},
        {"type": "function_call", "call_id": "call_2", "name": "now", "arguments": '{"city'},
        {"type": "function_call_output", "call_id": "call_2", "output": "noon"},
        {"type": "function_call_output", "call_id": "call_1", "output": [{"type": "input_text", "text": "20"}]},
    ]
    status, body = await peers.posted(RESPONSES, asked(RESPONSES, stream=False, input=items))
    assert (status, whole(RESPONSES, json.loads(body))) == (200, ("Warm.", [], "completed"))
    status, body = await peers.posted(RESPONSES, asked(RESPONSES, stream=False, input=[*HI, items[-1]]))
    assert (status, "call_1" in body) == (400, True), body


@pytest.mark.parametrize("arguments", ['{"a":' * 3000 + "1" + "}" * 3000, '{"a": "\\ud83d"}', "[1]"])
async def test_arguments_that_nobody_can_read_are_taken_back_as_text(peers: Peers, arguments: str) -> None:
    made = {"id": "call_1", "type": "function", "function": {"name": "now", "arguments": arguments}}
    talk = [
        *HI,
        {"role": "assistant", "tool_calls": [made]},
        {"role": "tool", "tool_call_id": "call_1", "content": ""},
    ]
    peers.cluster.script = Script(answer=tuple(ids_of("ok")))
    status, body = await peers.posted(CHAT, asked(CHAT, stream=False, messages=talk))
    assert status == 200, body


async def test_a_message_without_anything_in_it_is_refused(peers: Peers) -> None:
    empty = [{"role": "user", "content": []}]
    status, body = await peers.posted(MESSAGES, asked(MESSAGES, stream=False, messages=empty))
    assert (status, "messages[0].content is empty" in body) == (400, True), body


@pytest.mark.parametrize("path", [MESSAGES, OLLAMA])
@pytest.mark.parametrize("begun", ["Hi", '<tool_call>{"name": "now", "arguments": {"ci'])
async def test_what_fails_amid_an_answer_is_told_in_the_stream(peers: Peers, path: str, begun: str) -> None:
    """After what came: of a whole answer it is the status."""
    failure = ErrorBody(code="invalid_request", message="no such thing")
    peers.cluster.script = Script(answer=tuple(ids_of(begun)), ends_with=failure)
    status, body = await peers.posted(path, asked(path, stream=False))
    assert (status, "no such thing" in body, "done" in body) == (400, True, False), body
    status, body = await peers.posted(path, asked(path, stream=True))
    last = body.strip().rpartition("\n")[2]
    error = json.loads(last.removeprefix("data: "))["error"]
    assert (status, body.count('"error"')) == (200, 1 if path == OLLAMA else 2), body
    assert error == "no such thing" if path == OLLAMA else error["type"] == "invalid_request_error"
    assert "message_stop" not in body
    assert '"done":true' not in body
    await eventually(lambda: len(peers.cluster.latest.closed) == len(peers.cluster.workers))


@pytest.mark.parametrize(("path", "status"), [(MESSAGES, 529), (OLLAMA, 503)])
@pytest.mark.parametrize("stream", [False, True])
async def test_what_may_pass_says_when_to_ask_again(peers: Peers, path: str, status: int, stream: bool) -> None:
    body = json.dumps({"model": "tiny"} | asked(path, stream=stream))
    failure = ErrorBody(code="model_unavailable", message="blocks 3:5 are missing")
    peers.cluster.script = Script(route_error=failure)
    async with peers.http.post(peers.url + path, data=body, headers={"Content-Type": "application/json"}) as answer:
        error = (await answer.json())["error"]
        assert answer.status == status, error
        assert int(answer.headers["Retry-After"]) >= 1
    assert "blocks 3:5" in (error if path == OLLAMA else error["message"])
    assert path == OLLAMA or error["type"] == "overloaded_error"


@pytest.mark.parametrize(("path", "kind"), [(MESSAGES, "request_too_large"), (OLLAMA, None)])
async def test_a_body_over_16_mib_is_refused_in_the_apis_own_shape(
    peers: Peers, path: str, kind: str | None
) -> None:
    status, body = await peers.posted(path, asked(path, stream=True, messages=[HI[0] | {"content": "a" * 2**24}]))
    error = json.loads(body)["error"]
    assert status == 413
    assert "16777216" in (error if kind is None else error["message"])
    assert kind is None or error["type"] == kind
