"""How generations end: stop strings, callers that leave, deadlines, connections that are lost."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from client.api import Client
from protocol.errors import ConfigError, DeadlineExceededError, HopLostError
from tests.support.scripted_client import client, cluster, config_of, impatient
from tests.support.scripted_cluster import Script, ScriptedCluster
from tests.support.tiny_tokenizer import ids_of

__all__ = ["client", "cluster", "impatient"]


async def test_a_stop_string_ends_it_on_all_workers(client: Client, cluster: ScriptedCluster) -> None:
    cluster.script = Script(answer=tuple(ids_of("one two\nthree")), stop_short=True)
    async with client.stream("tiny", "count", stop=["\nth"]) as stream:
        pieces = [piece async for piece in stream]
    assert "".join(piece.text for piece in pieces) == stream.result.text == "one two"
    assert stream.result.finish_reason == "stop"
    await cluster.until_closed("cancelled")


async def test_what_only_began_like_a_stop_string_is_shown_at_the_end(
    client: Client, cluster: ScriptedCluster
) -> None:
    cluster.script = Script(answer=tuple(ids_of("one\nt")), finish="length")
    result = await client.generate("tiny", "count", stop=["\nth"])
    assert (result.text, result.finish_reason) == ("one\nt", "length")


async def test_leaving_early_cancels_on_head_and_tail(client: Client, cluster: ScriptedCluster) -> None:
    cluster.script = Script(answer=tuple(ids_of("abc")), stop_short=True)
    async with client.stream("tiny", "x") as stream:
        async for _ in stream:
            break
    await cluster.until_closed("cancelled")
    assert stream.result.finish_reason == "cancelled"


async def test_cancelling_the_task_cancels_on_head_and_tail(client: Client, cluster: ScriptedCluster) -> None:
    cluster.script = Script(answer=tuple(ids_of("abc")), stop_short=True)
    has_begun = asyncio.Event()

    async def generating() -> None:
        async for _ in client.stream("tiny", "x"):
            has_begun.set()

    async with asyncio.TaskGroup() as group:
        task = group.create_task(generating())
        await has_begun.wait()
        task.cancel()
    await cluster.until_closed("cancelled")


async def test_closing_the_client_tells_who_still_generates(cluster: ScriptedCluster, tmp_path: Path) -> None:
    has_begun = asyncio.Event()
    cluster.script = Script(answer=tuple(ids_of("abc")), stop_short=True)
    async with asyncio.TaskGroup() as group, Client(config=config_of(cluster, tmp_path)) as client:

        async def generating() -> None:
            async for _ in client.stream("tiny", "x"):
                has_begun.set()

        async def told() -> None:
            with pytest.raises(ConfigError, match="the client was closed while this was under way"):
                await generating()

        group.create_task(told())
        await has_begun.wait()


async def test_the_deadline_ends_it_on_all_workers(client: Client, cluster: ScriptedCluster) -> None:
    await client.generate("tiny", "x")
    cluster.script = Script(answer=tuple(ids_of("abc")), stop_short=True)
    with pytest.raises(DeadlineExceededError, match=r" 1 s"):
        await client.generate("tiny", "x", timeout_s=1.0)
    await cluster.until_closed("deadline")


async def test_a_lost_connection_is_dialled_again_and_the_caller_is_told(
    client: Client, cluster: ScriptedCluster
) -> None:
    cluster.attempts = [Script(answer=tuple(ids_of("abc")), drops_connection=True)]
    cluster.script = Script(answer=tuple(ids_of("def")), finish="length")
    notices: list[str] = []
    async with client.stream("tiny", "x", on_notice=notices.append) as stream:
        assert "".join([piece.text async for piece in stream]) == "abcdef"
    assert (stream.result.text, stream.result.failovers) == ("abcdef", 1)
    assert cluster.n_worker_connections == 3
    tail = cluster.workers[1][0]
    assert notices == [f"worker {tail} went away after 3 tokens; going on by another route"]


async def test_connections_that_are_always_lost_are_an_error_with_the_text_so_far(
    impatient: None, client: Client, cluster: ScriptedCluster
) -> None:
    cluster.attempts = [Script(answer=tuple(ids_of("abc")), drops_connection=True)]
    cluster.script = Script(drops_connection=True)
    async with client.stream("tiny", "x") as stream:
        with pytest.raises(HopLostError):
            async for _ in stream:
                pass
        assert stream.result.text == "abc"


async def test_no_more_tokens_come_out_than_were_asked_for(client: Client, cluster: ScriptedCluster) -> None:
    cluster.script = Script(answer=tuple(ids_of("abcdefgh")), stop_short=True)
    result = await client.generate("tiny", "x", max_tokens=2)
    assert (result.text, result.finish_reason) == ("ab", "length")
    await cluster.until_closed("cancelled")


async def test_the_callers_own_exception_comes_out_as_it_is(cluster: ScriptedCluster, tmp_path: Path) -> None:
    async def failing() -> None:
        async with Client(config=config_of(cluster, tmp_path)) as client:
            await client.generate("tiny", "x")
            raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        await failing()
