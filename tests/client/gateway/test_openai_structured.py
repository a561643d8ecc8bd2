"""What OpenAI's own Python package makes of pydantic classes: answers of a schema, and calls of tools."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Literal

import openai
import pytest
import pytest_asyncio
from pydantic import BaseModel, Field

from tests.support.coordinators import key_of
from tests.support.gateways import ServedGateway, gateway_cluster

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

HI: Any = [{"role": "user", "content": "hi"}]
ASKED: dict[str, Any] = {"model": "tiny", "messages": HI, "temperature": 0, "max_tokens": 300}


class Stop(BaseModel):
    city: Literal["Rome", "Oslo"]
    nights: int = Field(ge=1, le=9)


class Trip(BaseModel):
    """Everything in it ends, whatever a random model does."""

    stops: list[Stop] = Field(min_length=1, max_length=2)
    is_paid: bool
    note: Literal["none"] | None = None


class Weather(BaseModel):
    """How the weather is."""

    city: Literal["Rome", "Oslo"]


TOOLS: Any = [openai.pydantic_function_tool(Weather)]
CALLED = ASKED | {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[openai.AsyncOpenAI]:
    """Of a gateway with room for what is told of tools: a token is a byte."""
    async with gateway_cluster(tmp_path_factory.mktemp("gateway"), context=2048) as served, made(served) as client:
        yield client


def made(served: ServedGateway) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=f"{served.gateway.url}/v1",
        api_key=key_of(served.cluster.coordinator, "client"),
        max_retries=0,
        timeout=30.0,
        _strict_response_validation=True,
    )


async def test_an_answer_becomes_an_object_whole_and_streamed(client: openai.AsyncOpenAI) -> None:
    whole = await client.chat.completions.parse(**ASKED, response_format=Trip)
    trip = whole.choices[0].message.parsed
    assert isinstance(trip, Trip)
    async with client.chat.completions.stream(**ASKED, response_format=Trip) as stream:
        kinds = {event.type async for event in stream}
        final = await stream.get_final_completion()
    assert {"content.delta", "content.done"} <= kinds
    assert final.choices[0].message.parsed == trip
    response = await client.responses.parse(model="tiny", input="hi", text_format=Trip, temperature=0)
    assert isinstance(response.output_parsed, Trip)
    with pytest.raises(openai.LengthFinishReasonError):
        await client.chat.completions.parse(**ASKED | {"max_tokens": 3}, response_format=Trip)


async def test_a_tool_is_called_and_its_result_taken(client: openai.AsyncOpenAI) -> None:
    whole = await client.chat.completions.parse(**CALLED)
    message = whole.choices[0].message
    assert (whole.choices[0].finish_reason, message.content) == ("tool_calls", None)
    assert message.tool_calls is not None
    (call,) = message.tool_calls
    assert isinstance(call.function.parsed_arguments, Weather)

    async with client.chat.completions.stream(**CALLED) as stream:
        events = [event async for event in stream]
        final = await stream.get_final_completion()
    deltas = [event for event in events if event.type == "tool_calls.function.arguments.delta"]
    (done,) = [event for event in events if event.type == "tool_calls.function.arguments.done"]
    assert "".join(delta.arguments_delta for delta in deltas) == done.arguments == call.function.arguments
    assert final.choices[0].message.tool_calls is not None
    assert final.choices[0].message.tool_calls[0].function.parsed_arguments == call.function.parsed_arguments

    result: Any = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    talk: Any = {"messages": [*HI, message, result], "tools": TOOLS, "tool_choice": "none", "max_tokens": 8}
    after = await client.chat.completions.create(**ASKED | talk)
    assert after.choices[0].finish_reason in ("stop", "length")
    with pytest.raises(openai.BadRequestError, match="no assistant message"):
        await client.chat.completions.create(**ASKED | talk | {"messages": [*HI, result]})


async def test_a_tool_is_called_by_responses_too(client: openai.AsyncOpenAI) -> None:
    tool: Any = {"type": "function", "strict": True} | TOOLS[0]["function"]
    asked: Any = {"model": "tiny", "input": HI, "temperature": 0, "max_output_tokens": 300, "tools": [tool]}
    called: Any = asked | {"tool_choice": "required", "parallel_tool_calls": False}
    whole = await client.responses.parse(**called)
    (item,) = whole.output
    assert item.type == "function_call"
    assert item.parsed_arguments is not None
    async with client.responses.stream(**called) as stream:
        deltas = [event.delta async for event in stream if event.type == "response.function_call_arguments.delta"]
        final = await stream.get_final_response()
    (streamed,) = final.output
    assert streamed.type == "function_call"
    assert "".join(deltas) == streamed.arguments == item.arguments
    result: Any = {"type": "function_call_output", "call_id": item.call_id, "output": "sunny"}
    talk: Any = [*HI, item.model_dump(exclude={"parsed_arguments"}, exclude_none=True), result]
    after = await client.responses.create(**asked | {"input": talk, "tool_choice": "none", "max_output_tokens": 8})
    assert after.status in ("completed", "incomplete")


async def test_what_the_cluster_cant_hold_an_answer_to_is_refused(client: openai.AsyncOpenAI) -> None:
    for schema in ({"type": "nosuch"}, {"$ref": "#/nowhere"}, {"type": "string", "pattern": "("}):
        asked: Any = {"type": "json_schema", "json_schema": {"name": "odd", "schema": schema, "strict": True}}
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError) as raised:
                await client.chat.completions.create(**ASKED, response_format=asked, stream=stream)
            assert raised.value.type == "invalid_request_error"
