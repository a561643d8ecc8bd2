from __future__ import annotations

import math
from typing import Any

import pytest

from client.gateway.openai_fields import MAX_CHOICE_TEXTS
from client.gateway.openai_messages import MAX_MESSAGES, MAX_PARTS
from tests.support.gateways import ENDS, ServedGateway

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

PATH = "/v1/chat/completions"
HI = [{"role": "user", "content": "hi"}]


def asked(**more: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": HI, "max_tokens": 6, "temperature": 0, "logit_bias": ENDS} | more


async def test_a_whole_answer_and_a_streamed_one_say_the_same(served: ServedGateway) -> None:
    whole = await served.post(PATH, asked(seed=3))
    assert (whole.status, whole.headers["Content-Type"]) == (200, "application/json")
    body = whole.json()
    (choice,) = body["choices"]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["role"] == "assistant"
    assert body["usage"]["completion_tokens"] == 6
    assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] + 6
    assert body["system_fingerprint"].startswith("fp_")

    streamed = await served.post(PATH, asked(stream=True, stream_options={"include_usage": True}))
    assert streamed.headers["Content-Type"].startswith("text/event-stream")
    assert streamed.body.endswith(b"data: [DONE]\n\n")
    *chunks, last = streamed.events()
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert text == choice["message"]["content"]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks][-1] == "length"
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 6)
    assert len({chunk["id"] for chunk in chunks}) == 1


async def test_several_answers_have_seeds_of_their_own(served: ServedGateway) -> None:
    several = await served.post(PATH, asked(n=3, seed=5, temperature=1.5))
    alone = await served.post(PATH, asked(seed=6, temperature=1.5))
    body = several.json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert body["choices"][1]["message"] == alone.json()["choices"][0]["message"]
    assert body["usage"]["completion_tokens"] == 18
    assert body["usage"]["prompt_tokens"] == alone.json()["usage"]["prompt_tokens"]

    streamed = await served.post(PATH, asked(n=3, seed=5, temperature=1.5, stream=True))
    texts = ["", "", ""]
    for chunk in streamed.events():
        texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["delta"].get("content", "")
    assert texts == [choice["message"]["content"] for choice in body["choices"]]


@pytest.mark.parametrize("stream", [False, True])
async def test_tokens_come_with_their_probabilities(served: ServedGateway, stream: bool) -> None:
    answer = await served.post(PATH, asked(logprobs=True, top_logprobs=2, stream=stream))
    if stream:
        tokens = [
            token
            for chunk in answer.events()
            for token in ((chunk["choices"][0]["logprobs"] or {}).get("content") or [])
        ]
    else:
        tokens = answer.json()["choices"][0]["logprobs"]["content"]
    assert len(tokens) == 6
    for token in tokens:
        assert bytes(token["bytes"]).decode(errors="replace") == token["token"]
        assert len(token["top_logprobs"]) == 2
        assert -math.inf < token["logprob"] <= 0


async def test_the_next_turn_of_a_conversation_isnt_run_again(served: ServedGateway) -> None:
    messages = [{"role": "user", "content": "a question that is long enough to be worth keeping in a cache"}]
    first = await served.post(PATH, asked(messages=messages))
    said = first.json()["choices"][0]["message"]
    messages += [{"role": "assistant", "content": said["content"]}, {"role": "user", "content": "and?"}]
    second = await served.post(PATH, asked(messages=messages))
    assert second.json()["usage"]["prompt_tokens_details"]["cached_tokens"] > 30


async def test_an_answer_is_held_to_a_pattern(served: ServedGateway) -> None:
    for more in ({"regex": "[ab]{4}"}, {"structured_outputs": {"choice": ["abab", "baba"]}}):
        answer = await served.post(PATH, {"model": "tiny", "messages": HI, **more})
        (choice,) = answer.json()["choices"]
        assert set(choice["message"]["content"]) <= set("ab")
        assert (len(choice["message"]["content"]), choice["finish_reason"]) == (4, "stop")


@pytest.mark.parametrize(
    ("change", "status", "param", "code"),
    [
        ({"model": "gpt-4o"}, 404, "model", "model_not_found"),
        ({"model": "open/ai"}, 404, "model", "model_not_found"),
        ({"messages": []}, 400, "messages", None),
        ({"messages": "hi"}, 400, "messages", None),
        ({"messages": [{"role": "king", "content": ""}]}, 400, "messages[0].role", None),
        ({"messages": [{"role": "user"}]}, 400, "messages[0].content", None),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            400,
            "messages[0].content[0]",
            "unsupported_content",
        ),
        ({"colour": "red"}, 400, "colour", "unknown_parameter"),
        ({"max_tokens": "many"}, 400, "max_tokens", None),
        ({"max_tokens": 0}, 400, "max_tokens", None),
        ({"max_tokens": 4000}, 400, "messages", "context_length_exceeded"),
        ({"temperature": -1}, 400, "temperature", None),
        ({"n": 9}, 400, "n", None),
        ({"top_logprobs": 3}, 400, "top_logprobs", None),
        ({"logprobs": True, "top_logprobs": 21}, 400, "top_logprobs", None),
        ({"logit_bias": {"x": 1}}, 400, "logit_bias", None),
        ({"stop": list("abcdefghijklmnopq")}, 400, "stop", None),
        ({"stream": False, "stream_options": {"include_usage": True}}, 400, "stream_options", None),
        ({"reasoning_effort": "high"}, 400, "reasoning_effort", "unsupported_parameter"),
        ({"store": True}, 400, "store", None),
        ({"regex": "a", "grammar": "start: /b/"}, 400, "grammar", None),
        ({"response_format": {"type": "json_schema"}}, 400, "response_format.json_schema", None),
        ({"tool_choice": "required"}, 400, "tool_choice", None),
        ({"messages": HI * (MAX_MESSAGES + 1)}, 400, "messages", None),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": ""}] * (MAX_PARTS + 1)}]},
            400,
            "messages[0].content",
            None,
        ),
        ({"tools": [{"type": "function", "function": {"name": "a"}}] * 129}, 400, "tools", None),
        ({"logit_bias": {str(number): 1 for number in range(1025)}}, 400, "logit_bias", None),
        (
            {"structured_outputs": {"choice": ["a"] * (MAX_CHOICE_TEXTS + 1)}},
            400,
            "structured_outputs.choice",
            None,
        ),
    ],
)
async def test_what_cant_be_done_is_refused_by_name(
    served: ServedGateway, change: dict[str, Any], status: int, param: str, code: str | None
) -> None:
    for stream in (False, True):
        answer = await served.post(PATH, asked(stream=stream) | change)
        error = answer.json()["error"]
        assert (answer.status, error["param"], error["code"]) == (status, param, code), error
        assert error["type"] == "invalid_request_error"
        assert set(error) == {"message", "type", "param", "code"}
    assert served.sessions_on_workers() == 0
