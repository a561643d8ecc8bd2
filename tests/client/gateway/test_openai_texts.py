"""Text completions, responses, embeddings."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from client.gateway import openai_responses
from client.gateway.openai_fields import MAX_PROMPT_IDS
from tests.support.gateways import ENDS, ServedGateway
from tests.support.tiny_tokenizer import ids_of

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

TEXTS = "/v1/completions"
RESPONSES = "/v1/responses"
SAID: dict[str, Any] = {"role": "user", "content": "hi"}
CALL: dict[str, Any] = {"type": "function_call", "call_id": "1", "name": "look", "arguments": "{}"}
RESULT: dict[str, Any] = {"type": "function_call_output", "call_id": "1", "output": "a"}
IMAGES = [{"type": "input_image"}]


def asked(**more: Any) -> dict[str, Any]:
    return {"model": "tiny", "prompt": "the inn", "max_tokens": 4, "temperature": 0, "logit_bias": ENDS} | more


async def test_texts_go_on_whole_and_streamed(served: ServedGateway) -> None:
    prompts = ["the inn", "in the"]
    whole = (await served.post(TEXTS, asked(prompt=prompts, n=2, echo=True))).json()
    assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2, 3]
    assert whole["choices"][0]["text"].startswith("the inn")
    assert whole["choices"][3]["text"].startswith("in the")
    assert whole["usage"]["completion_tokens"] == 16
    assert whole["usage"]["prompt_tokens"] == sum(len(ids_of(prompt)) + 1 for prompt in prompts)

    streamed = await served.post(
        TEXTS, asked(prompt=prompts, n=2, echo=True, stream=True, stream_options={"include_usage": True})
    )
    *chunks, last = streamed.events()
    texts = ["", "", "", ""]
    for chunk in chunks:
        texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert texts == [choice["text"] for choice in whole["choices"]]
    assert last["usage"]["total_tokens"] == whole["usage"]["total_tokens"]


async def test_a_prompt_may_be_token_ids(served: ServedGateway) -> None:
    text = (await served.post(TEXTS, asked())).json()
    ids = (await served.post(TEXTS, asked(prompt=[0, *ids_of("the inn")], echo=True))).json()
    assert ids["choices"][0]["text"] == "<s>the inn" + text["choices"][0]["text"]


async def test_tokens_of_texts_come_with_their_probabilities(served: ServedGateway) -> None:
    (choice,) = (await served.post(TEXTS, asked(logprobs=2))).json()["choices"]
    logprobs = choice["logprobs"]
    assert {len(logprobs[name]) for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")} == {4}
    streamed = (await served.post(TEXTS, asked(logprobs=2, stream=True))).events()
    offsets = [
        offset
        for chunk in streamed
        if chunk["choices"][0]["logprobs"]
        for offset in chunk["choices"][0]["logprobs"]["text_offset"]
    ]
    assert offsets == logprobs["text_offset"]


@pytest.mark.parametrize(
    ("path", "change", "param"),
    [
        (TEXTS, {"suffix": "x"}, "suffix"),
        (TEXTS, {"best_of": 2}, "best_of"),
        (TEXTS, {"prompt": []}, "prompt"),
        (TEXTS, {"prompt": [1, "a"]}, "prompt"),
        (TEXTS, {"prompt": ["a"] * 65}, "prompt"),
        (TEXTS, {"prompt": [1] * (MAX_PROMPT_IDS + 1)}, "prompt"),
        (TEXTS, {"prompt": [[1] * MAX_PROMPT_IDS, [1]]}, "prompt"),
        (TEXTS, {"prompt": [-1], "echo": True}, None),
        (TEXTS, {"prompt": [2**40], "echo": True}, None),
        (TEXTS, {"echo": True, "logprobs": 1}, "echo"),
        (RESPONSES, {"previous_response_id": "resp_1"}, "previous_response_id"),
        (RESPONSES, {"store": True}, "store"),
        (RESPONSES, {"tools": [{"type": "web_search"}]}, "tools[0].type"),
        (RESPONSES, {"input": [{"type": "reasoning"}]}, "input[0].type"),
        (RESPONSES, {"input": [{"type": "function_call_output"}]}, "input[0]"),
        (RESPONSES, {"input": []}, "input"),
        (RESPONSES, {"instructions": "a", "input": [SAID, SAID | {"content": IMAGES}]}, "input[1].content[0]"),
        (RESPONSES, {"instructions": "a", "input": [CALL, RESULT | {"output": IMAGES}]}, "input[1].output[0]"),
        (RESPONSES, {"instructions": "a", "input": [SAID, CALL, RESULT | {"call_id": "2"}]}, "input[2].call_id"),
        (RESPONSES, {"tool_choice": "required"}, "tool_choice"),
        (RESPONSES, {"text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
        ("/v1/embeddings", {"input": []}, "input"),
        ("/v1/embeddings", {"encoding_format": "int8"}, "encoding_format"),
    ],
)
async def test_what_cant_be_done_is_refused_by_name(
    served: ServedGateway, path: str, change: dict[str, Any], param: str | None
) -> None:
    bodies = {
        TEXTS: asked(),
        RESPONSES: {"model": "tiny", "input": "hi"},
        "/v1/embeddings": {"model": "tiny", "input": "hi"},
    }
    answer = await served.post(path, bodies[path] | change)
    assert (answer.status, answer.json()["error"]["param"]) == (400, param), answer.body


async def test_a_response_is_told_in_numbered_events(served: ServedGateway) -> None:
    body = {
        "model": "tiny",
        "instructions": "be brief",
        "input": [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}],
        "max_output_tokens": 5,
        "temperature": 0,
        "regex": "[ab]{20}",
    }
    whole = (await served.post(RESPONSES, body)).json()
    assert (whole["status"], whole["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert whole["store"] is False
    text = whole["output"][0]["content"][0]["text"]
    assert set(text) <= set("ab")

    events = (await served.post(RESPONSES, body | {"stream": True})).events()
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    kinds = [event["type"] for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert set(kinds[4:-4]) == {"response.output_text.delta"}
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    assert "".join(event["delta"] for event in events if "delta" in event) == text
    assert events[-1]["response"]["usage"]["total_tokens"] == whole["usage"]["total_tokens"]


async def test_embeddings_come_as_numbers_and_as_bytes(served: ServedGateway) -> None:
    body = {"model": "tiny", "input": ["the inn", "in the"]}
    numbers = (await served.post("/v1/embeddings", body)).json()
    assert [entry["index"] for entry in numbers["data"]] == [0, 1]
    assert numbers["usage"]["prompt_tokens"] > 0
    encoded = (await served.post("/v1/embeddings", body | {"encoding_format": "base64"})).json()
    for entry, other in zip(numbers["data"], encoded["data"], strict=True):
        vector = memoryview(base64.b64decode(other["embedding"])).cast("f").tolist()
        assert vector == pytest.approx(entry["embedding"], abs=1e-5)


async def test_a_response_that_fails_after_a_while_has_begun_before(
    served: ServedGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai_responses, "KEEP_ALIVE_S", 0.0)
    body = {"model": "tiny", "input": "hi", "max_output_tokens": 4000, "stream": True}
    events = (await served.post(RESPONSES, body)).events()
    kinds = ["response.created", "response.in_progress", "response.failed"]
    assert [(event["type"], event["sequence_number"]) for event in events] == list(
        zip(kinds, range(3), strict=True)
    )
