from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from client.api import Client
from client.config import ClientConfig
from protocol.errors import InvalidRequestError, NotFoundError
from tests.support.scripted_cluster import Script, ScriptedCluster, scripted_cluster
from tests.support.tiny_tokenizer import ids_of, tiny_tokenizer

IM_END = 3
USER = {"role": "user", "content": "hi"}


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[ScriptedCluster]:
    async with scripted_cluster(tmp_path) as running:
        running.script = Script(answer=(*ids_of("hello"), IM_END))
        yield running


@pytest.fixture
async def client(cluster: ScriptedCluster, tmp_path: Path) -> AsyncIterator[Client]:
    config = ClientConfig(url=cluster.url, api_key=cluster.api_key, cache=tmp_path / "cache")
    async with Client(config=config) as opened:
        yield opened


def asked(cluster: ScriptedCluster) -> str:
    """The latest prompt as the model got it."""
    return tiny_tokenizer().decode(cluster.prompt_ids, skip_special_tokens=False)


async def test_a_chat_is_laid_out_by_the_models_template_and_counts_as_many_tokens(
    client: Client, cluster: ScriptedCluster
) -> None:
    result = await client.chat("tiny", [USER], max_tokens=9)
    assert (result.text, result.finish_reason) == ("hello", "stop")
    assert asked(cluster) == "<s><|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert await client.count_tokens("tiny", [USER]) == result.prompt_tokens
    assert await client.count_tokens("tiny", "the") == 2


@pytest.mark.parametrize("messages", ["hi", [1, 2], ["hi"], []])
async def test_what_is_no_conversation_is_refused(client: Client, messages: Any) -> None:
    with pytest.raises(InvalidRequestError):
        await client.chat("tiny", messages)
    if messages:
        with pytest.raises(InvalidRequestError, match="a chat takes messages"):
            client.chat_session("tiny", messages=messages)


async def test_a_session_keeps_what_was_said(client: Client, cluster: ScriptedCluster) -> None:
    chat = client.chat_session("tiny", system="be brief", max_tokens=9)
    assert (await chat.say("hi")).text == "hello"
    cluster.script = Script(answer=tuple(ids_of("abc")), stop_short=True)
    async with chat.stream("more", temperature=0.5) as pieces:
        assert (await anext(pieces)).text == "a"
    system, answer = {"role": "system", "content": "be brief"}, {"role": "assistant", "content": "hello"}
    more = {"role": "user", "content": "more"}
    assert list(chat.messages) == [system, USER, answer, more, {"role": "assistant", "content": "a"}]
    assert (cluster.sampling.temperature, cluster.sampling.max_tokens) == (0.5, 9)
    assert "hello<|im_end|>\n<|im_start|>user\nmore<|im_end|>" in asked(cluster)


async def test_a_turn_that_fails_leaves_a_session_as_it_was(client: Client) -> None:
    chat = client.chat_session("other", messages=[USER])
    with pytest.raises(NotFoundError):
        await chat.say("more")
    assert chat.messages == (USER,)
    chat = client.chat_session("tiny", messages=[USER])
    with pytest.raises(InvalidRequestError, match="max_tokens"):
        await chat.say("more", max_tokens=0)
    async with chat.stream("more"):
        pass  # nothing was asked for, so nothing was said
    assert chat.messages == (USER,)


async def test_files_and_own_stop_tokens(client: Client, cluster: ScriptedCluster) -> None:
    files = await client.model_files("tiny")
    assert (files.revision, "tokenizer.json" in files.contents) == (cluster.revision, True)
    await client.generate("tiny", "x", stop_token_ids=[7, 9])
    assert cluster.sampling.stop_token_ids == (7, 9)
    await client.generate("tiny", "x", stop_token_ids=())
    assert cluster.sampling.stop_token_ids == ()
    for options, words in (
        ({"stop_token_ids": [5000]}, "token id 5000 is not one of the model's"),
        ({"stop_token_ids": [7], "ignore_eos": True}, "1 stop_token_ids are to end the answer"),
    ):
        with pytest.raises(InvalidRequestError, match=words):
            await client.generate("tiny", "x", **options)
