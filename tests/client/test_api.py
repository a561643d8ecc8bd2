"""The public client against scripted workers: text, tokens and numbers, connections, and what workers are told."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from client.api import Client
from protocol.errors import InvalidRequestError, UnreachableError
from protocol.frames import encode_frame
from protocol.ids import SessionId
from protocol.messages import SharedPrefix, Token
from tests.support.scripted_client import client, cluster, config_of, impatient
from tests.support.scripted_cluster import Script, ScriptedCluster, scripted_cluster
from tests.support.tiny_tokenizer import ids_of, tiny_files
from tests.support.waiting import eventually

__all__ = ["client", "cluster", "impatient"]


async def test_a_client_that_is_opened_while_the_coordinator_is_away_waits_for_it(
    cluster: ScriptedCluster, tmp_path: Path
) -> None:
    (served,) = cluster.served
    notices: asyncio.Queue[str] = asyncio.Queue()
    await served.stop()

    async def comes_back() -> None:
        assert "coordinator away, trying again: no coordinator answers" in await notices.get()
        await served.start()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(comes_back())
        async with Client(config=config_of(cluster, tmp_path), on_notice=notices.put_nowait) as client:
            assert await client.models()
    assert notices.empty()


async def test_a_client_gives_up_when_its_time_is_over(cluster: ScriptedCluster, tmp_path: Path) -> None:
    await cluster.served[0].stop()
    config = replace(config_of(cluster, tmp_path), connect_timeout_s=0.3)
    with pytest.raises(UnreachableError):
        async with Client(config=config):
            pass


async def test_tokens_that_come_in_one_message_are_all_taken_in_order(
    client: Client, cluster: ScriptedCluster
) -> None:
    answer = cluster.script.answer
    tokens = (
        Token(
            session_id=SessionId("s-1"),
            index=index,
            token_id=token_id,
            finish_reason="stop" if index == len(answer) - 1 else None,
        )
        for index, token_id in enumerate(answer)
    )
    cluster.script = Script(raw=b"".join(map(encode_frame, tokens)), answer=(), stop_short=True)
    result = await client.generate("tiny", "The capital of France is", max_tokens=20)
    assert (result.token_ids, result.finish_reason, result.failovers) == (answer, "stop", 0)


async def test_generates_text_tokens_and_numbers(client: Client, cluster: ScriptedCluster) -> None:
    result = await client.generate("tiny", "The capital of France is", max_tokens=20)
    assert result.text == " Paris."
    assert result.token_ids == cluster.script.answer
    assert result.completion_tokens == len(cluster.script.answer)
    assert (result.finish_reason, result.failovers) == ("stop", 0)
    assert result.prompt_tokens == len(cluster.prompt_ids)
    assert result.ttft_s > 0
    assert result.tokens_per_s > 0
    assert [(stage.start, stage.end, stage.precision) for stage in result.route] == [
        (0, 1, "float32"),
        (1, 10, "float32"),
    ]


async def test_text_gets_bos_once_and_the_tail_gets_the_prompt_too(
    client: Client, cluster: ScriptedCluster
) -> None:
    await client.generate("tiny", "hello")
    assert cluster.prompt_ids == [0, *ids_of("hello")]
    assert cluster.latest.attached_prompt == bytes(cluster.latest.prompt_step.payload)  # type: ignore[union-attr]


async def test_a_chat_has_the_templates_bos_alone(client: Client, cluster: ScriptedCluster) -> None:
    await client.generate("tiny", [{"role": "user", "content": "hi"}])
    expected = ids_of("<s><|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")
    assert cluster.prompt_ids == expected
    assert expected.count(0) == 1


async def test_the_tail_is_told_how_to_sample_and_where_to_stop(client: Client, cluster: ScriptedCluster) -> None:
    await client.generate("tiny", [5, 6], max_tokens=7, temperature=0.25, top_k=3, seed=11)
    sampling = cluster.sampling
    assert (sampling.temperature, sampling.top_k, sampling.seed, sampling.max_tokens) == (0.25, 3, 11, 7)
    assert set(sampling.stop_token_ids) == {1, 3}
    assert [request.n_prompt_tokens for request in cluster.route_requests] == [2]


async def test_is_greedy_unless_the_model_says_that_it_samples(client: Client, cluster: ScriptedCluster) -> None:
    await client.generate("tiny", "x")
    assert cluster.sampling.temperature == 0.0  # generation_config.json has 0.5, but no do_sample


LONG = list(range(4, 60))


async def test_the_next_turn_names_the_session_whose_text_it_begins_with(
    client: Client, cluster: ScriptedCluster
) -> None:
    first = await client.generate("tiny", LONG)
    assert (cluster.route_requests[-1].prefix, first.cached_tokens) == (None, 0)
    cluster.script.n_cached = 57
    prompt = [*LONG, *first.token_ids, 7, 8, 9]
    second = await client.generate("tiny", prompt)
    n_run = len(LONG) + len(first.token_ids) - 1
    assert cluster.route_requests[-1].prefix == SharedPrefix(session_id=SessionId("s-1"), n_positions=n_run)
    assert second.cached_tokens == 57
    assert cluster.prompt_ids == prompt, "the head compares it all"
    cluster.script.n_cached = 0  # by now the workers have lost it
    await client.generate("tiny", [*prompt[:50], 5, 5, 5])
    assert cluster.route_requests[-1].prefix == SharedPrefix(session_id=SessionId("s-2"), n_positions=50)
    await client.generate("tiny", [*prompt[:50], 6, 6, 6])
    assert cluster.route_requests[-1].prefix == SharedPrefix(session_id=SessionId("s-3"), n_positions=50)


async def test_without_a_prefix_cache_no_session_is_named(cluster: ScriptedCluster, tmp_path: Path) -> None:
    async with Client(config=config_of(cluster, tmp_path), prefix_cache=False) as client:
        for _ in range(2):
            await client.generate("tiny", LONG)
    assert [request.prefix for request in cluster.route_requests] == [None, None]


async def test_connections_are_made_once(client: Client, cluster: ScriptedCluster) -> None:
    for _ in range(3):
        await client.generate("tiny", "x")
    assert cluster.n_worker_connections == 2
    assert len(cluster.fetched) == len(set(cluster.fetched))


async def test_one_worker_is_head_and_tail_on_one_connection(tmp_path: Path) -> None:
    async with scripted_cluster(tmp_path, n_workers=1) as cluster:
        cluster.script = Script(answer=tuple(ids_of("yes")), finish="length")
        async with Client(config=config_of(cluster, tmp_path)) as client:
            result = await client.generate("tiny", "x")
        assert (result.text, result.finish_reason, cluster.n_worker_connections) == ("yes", "length", 1)


async def test_many_at_once_share_connections_and_keep_apart(client: Client, cluster: ScriptedCluster) -> None:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(client.generate("tiny", f"number {i}")) for i in range(8)]
    assert {task.result().text for task in tasks} == {" Paris."}
    assert cluster.n_worker_connections == 2


async def test_of_many_that_begin_at_once_one_loads_the_tokenizer(client: Client) -> None:
    revision = (await client.model("tiny")).revision
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(client.tokenizer(revision)) for _ in range(8)]
    assert len({id(task.result()) for task in tasks}) == 1


async def test_characters_of_several_tokens_are_never_broken(client: Client, cluster: ScriptedCluster) -> None:
    cluster.script = Script(answer=tuple(ids_of("a\N{EURO SIGN}\N{ROCKET}")), finish="length")
    async with client.stream("tiny", "x") as stream:
        texts = [piece.text async for piece in stream]
    assert [text for text in texts if text] == ["a", "\N{EURO SIGN}", "\N{ROCKET}"]


async def test_a_model_without_tokenizer_takes_ids(tmp_path: Path) -> None:
    files = {name: data for name, data in tiny_files().items() if name.endswith("config.json")}
    async with (
        scripted_cluster(tmp_path, files=files) as cluster,
        Client(config=config_of(cluster, tmp_path)) as client,
    ):
        cluster.script = Script(answer=(7, 8), finish="length")
        result = await client.generate("tiny", [5])
        assert (result.token_ids, result.text) == ((7, 8), "")
        with pytest.raises(InvalidRequestError, match="no tokenizer"):
            await client.generate("tiny", "text")


async def test_lists_models(client: Client) -> None:
    assert [model.name for model in await client.models()] == ["tiny"]
    assert (await client.model("tiny")).is_chat


async def test_a_whole_generation_loads_no_torch(cluster: ScriptedCluster, tmp_path: Path) -> None:
    program = (
        "import sys, asyncio\n"
        "import client.cli\n"
        "code = client.cli.main(['generate', 'hello', '--json'])\n"
        "heavy = {'torch', 'transformers', 'numpy', 'coordinator', 'worker'} & set(sys.modules)\n"
        "sys.exit(f'loaded: {heavy}' if heavy else code)\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        program,
        env={"BRIGADE_URL": cluster.url, "BRIGADE_API_KEY": cluster.key_text, "BRIGADE_CACHE": str(tmp_path)},
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")
    assert b'"done"' in out


async def test_a_route_is_asked_for_with_how_far_the_workers_were_that_were_used_before(
    cluster: ScriptedCluster, client: Client
) -> None:
    await client.generate("tiny", "x", max_tokens=9)
    await eventually(lambda: len(client._connected()[1].legs()) == len(cluster.workers))
    await client.generate("tiny", "x", max_tokens=9)
    first, second = (request.client_legs for request in cluster.route_requests)
    assert first == ()
    assert {leg.worker_id for leg in second} == {worker_id for worker_id, _ in cluster.workers}
    assert all(leg.is_connected and leg.round_trip_s > 0 for leg in second)
