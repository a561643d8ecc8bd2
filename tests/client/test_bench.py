"""The benchmark of a cluster, against one that answers by a script."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from client.api import Client
from client.bench import Bench, BenchPlan
from client.config import ClientConfig
from protocol.errors import ContextExceededError, ErrorBody, InvalidRequestError
from tests.support.scripted_cluster import Script, ScriptedCluster, scripted_cluster

DEADLINE_S = 20.0
ANSWER = Script(answer=(7, 8, 9), finish="length")


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[ScriptedCluster]:
    async with asyncio.timeout(DEADLINE_S), scripted_cluster(tmp_path) as running:
        running.script = ANSWER
        yield running


@pytest.fixture
async def client(cluster: ScriptedCluster, tmp_path: Path) -> AsyncIterator[Client]:
    config = ClientConfig(url=cluster.url, api_key=cluster.api_key, cache=tmp_path / "cache")
    async with Client(config=config) as client:
        yield client


async def plan_of(client: Client) -> BenchPlan:
    return BenchPlan(model=await client.model("tiny"), streams=(1, 2), n_rounds=2, n_prompt_tokens=20, max_tokens=3)


async def test_every_level_is_measured_with_prompts_that_nobody_knows(
    client: Client, cluster: ScriptedCluster
) -> None:
    bench = Bench(client, await plan_of(client))
    lines: list[str] = []
    bench.on_progress = lines.append
    await bench.run()
    report = bench.report()
    assert not report.is_interrupted
    assert [(level.n_streams, level.n_whole, level.n_tokens) for level in report.levels] == [(1, 2, 6), (2, 4, 12)]
    assert all(level.tokens_per_s > 0 and level.ttft_p50_s > 0 for level in report.levels)
    assert len(report.route) == len(cluster.workers)
    assert lines[-1] == "2 streams: 12 of 12 tokens"
    prompts = {bytes(seen.prompt_step.payload) for seen in cluster.seen.values() if seen.prompt_step is not None}
    assert len(prompts) == len(cluster.seen)
    assert {len(prompt) for prompt in prompts} == {4 * 20}
    for seen in cluster.seen.values():
        assert seen.attached is not None
        assert seen.attached.sampling.stop_token_ids == ()
        assert seen.attached.sampling.temperature == 0.0


async def test_a_generation_that_fails_is_counted_and_the_others_go_on(
    client: Client, cluster: ScriptedCluster
) -> None:
    full = ErrorBody(code="invalid_request", message="your key may have one stream")
    bench = Bench(client, replace(await plan_of(client), streams=(1,)))
    cluster.attempts = [ANSWER, ANSWER, Script(head_ends_with=full)]
    await bench.run()
    (level,) = bench.report().levels
    assert (level.n_whole, level.n_failed, level.failures) == (1, 1, {full.message: 1})


async def test_a_cluster_that_takes_nothing_at_all_is_an_error(client: Client, cluster: ScriptedCluster) -> None:
    cluster.script = Script(route_error=ErrorBody(code="invalid_request", message="no"))
    with pytest.raises(InvalidRequestError, match="no"):
        await Bench(client, await plan_of(client)).run()


async def test_what_was_measured_stays_when_the_run_is_cancelled(client: Client, cluster: ScriptedCluster) -> None:
    bench = Bench(client, replace(await plan_of(client), max_tokens=9))
    cluster.attempts = [Script(answer=(1, 2, 3, 4), finish="length"), Script(answer=(7, 8), stop_short=True)]
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(bench.run())
        bench.on_progress = lambda text: running.cancel() if "2 of 18" in text else None
    report = bench.report()
    assert report.is_interrupted
    (level,) = report.levels
    assert (level.n_tokens, level.n_interrupted, level.n_whole) == (2, 1, 0)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"streams": (0,)}, InvalidRequestError, "0 streams"),
        ({"n_rounds": 0}, InvalidRequestError, "number of rounds is 0; .* 1 or more"),
        ({"max_tokens": 1}, InvalidRequestError, "number of tokens of an answer is 1; .* 2 or more"),
        ({"n_prompt_tokens": 10**6}, ContextExceededError, "--prompt-tokens"),
    ],
)
async def test_what_cannot_be_measured_is_refused(
    client: Client, changes: dict[str, object], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        replace(await plan_of(client), **changes).check()  # type: ignore[arg-type]
