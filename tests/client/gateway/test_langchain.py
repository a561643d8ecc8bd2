"""LangChain's `ChatOpenAI` and `OpenAIEmbeddings` against the gateway."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, Literal

import openai
import pytest
import pytest_asyncio
from langchain_core.exceptions import ContextOverflowError, ModelNotFoundError
from langchain_core.messages import AIMessageChunk, HumanMessage, SystemMessage, ToolMessage
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel

from tests.support.coordinators import key_of
from tests.support.gateways import gateway_cluster

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

HI = [SystemMessage("Be brief."), HumanMessage("hi")]


class Weather(BaseModel):
    """How the weather is."""

    city: Literal["Rome", "Oslo"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chat(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Callable[..., ChatOpenAI]]:
    """Makes models of a gateway with room for what is told of tools: a token is a byte."""
    async with (
        gateway_cluster(tmp_path_factory.mktemp("gateway"), context=2048) as served,
        openai.DefaultAsyncHttpxClient() as http,
    ):
        own: dict[str, Any] = {
            "base_url": f"{served.gateway.url}/v1",
            "api_key": key_of(served.cluster.coordinator, "client"),
            "model": "tiny",
            "temperature": 0,
            "max_tokens": 12,
            "max_retries": 0,
            "timeout": 30.0,
            "http_async_client": http,
        }
        yield lambda **changes: ChatOpenAI(**own | changes)


Chat = Callable[..., ChatOpenAI]


async def test_a_chat_whole_and_streamed_is_the_same(chat: Chat) -> None:
    whole = await chat().ainvoke(HI)
    total = AIMessageChunk(content="")
    async for chunk in chat(stream_usage=True).astream(HI):
        total += chunk
    assert total.content == whole.content
    assert whole.usage_metadata is not None
    assert total.usage_metadata is not None
    assert total.usage_metadata["total_tokens"] == whole.usage_metadata["total_tokens"]
    assert whole.response_metadata["model_name"] == "tiny"
    by_responses = await chat(use_responses_api=True).ainvoke(HI)
    assert by_responses.text == whole.content


async def test_bound_tools_are_called_and_their_results_taken(chat: Chat) -> None:
    model = chat(max_tokens=200).bind_tools([Weather], tool_choice="any", parallel_tool_calls=False)
    answer = await model.ainvoke(HI)
    (call,) = answer.tool_calls
    assert (call["name"], answer.invalid_tool_calls) == ("Weather", [])
    total = AIMessageChunk(content="")
    async for chunk in model.astream(HI):
        total += chunk
    assert [one["args"] for one in total.tool_calls] == [call["args"]]
    talk = [*HI, answer, ToolMessage("sunny", tool_call_id=call["id"])]
    assert (await chat().bind_tools([Weather], tool_choice="none").ainvoke(talk)).tool_calls == []


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # of its own, about objects that it made
@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
async def test_answers_become_objects(chat: Chat, method: Literal["json_schema", "function_calling"]) -> None:
    model = chat(max_tokens=200).with_structured_output(Weather, method=method)
    assert isinstance(await model.ainvoke(HI), Weather)
    *_, last = [piece async for piece in model.astream(HI)]
    assert isinstance(last, Weather)


async def test_texts_become_vectors(chat: Chat) -> None:
    made = chat()
    # its check of lengths counts the tokens of OpenAI's models, and would send those
    vectors = OpenAIEmbeddings(
        base_url=made.openai_api_base,
        api_key=made.openai_api_key,
        model="tiny",
        check_embedding_ctx_length=False,
        http_async_client=made.http_async_client,
    )
    found = await vectors.aembed_documents(["one", "two"])
    assert len(found) == 2
    assert await vectors.aembed_query("one") == pytest.approx(found[0], abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"model": "nosuch"}, ModelNotFoundError),
        ({"api_key": "sk-0"}, openai.AuthenticationError),
        ({"max_tokens": 4000}, ContextOverflowError),
        ({"extra_body": {"nosuch": 1}}, openai.BadRequestError),
    ],
)
async def test_errors_are_raised_as_langchains_own(
    chat: Chat, changes: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        await chat(**changes).ainvoke(HI)
    with pytest.raises(error):
        async for _ in chat(**changes).astream(HI):
            pass
