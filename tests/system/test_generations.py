"""What generations have to keep to, through whole clusters of tiny models: lengths, seeds, models, many at once."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from protocol.errors import ContextExceededError, ModelUnavailableError
from protocol.ids import ModelName
from protocol.rest import RouteGrant, RouteRequest
from tests.support.coordinators import Answer, http_session, key_of
from tests.support.tiny_models import CONTEXT, VOCAB_SIZE
from tests.support.whole_cluster import WholeCluster, greedy_ids, hop_ranges, packed_tiny, whole_cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
CHUNK = 8
ENDLESS: dict[str, Any] = {"eos_token_id": None}
PROMPT = [5, 9, 30, 4, 77, 12]


def prompt_of(n_tokens: int, seed: int = 0) -> list[int]:
    return [3 + (7 * index + 5 * seed) % (VOCAB_SIZE - 3) for index in range(n_tokens)]


async def route_answer(cluster: WholeCluster, **request: Any) -> Answer:
    wanted = RouteRequest(model=ModelName("tiny"), **({"n_prompt_tokens": 1, "max_tokens": 1} | request))
    async with http_session(cluster.coordinator, key_of(cluster.coordinator, "client")) as http:
        return await http.ask("POST", "/v1/routes", wanted)


async def test_prompts_around_the_chunk_and_contexts_filled_to_the_last_position(tmp_path: Path) -> None:
    packed, whole = packed_tiny(tmp_path, "llama", **ENDLESS)
    async with whole_cluster(tmp_path) as cluster:
        await cluster.add_model("tiny", packed)
        for name, blocks in (("head", "0:1"), ("middle", "1:3"), ("tail", "3:4")):
            await cluster.join(name, blocks, chunk_tokens=CHUNK)
        await cluster.until_ready()
        async with cluster.client() as client:
            for n_tokens in (1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK + 1):
                prompt = prompt_of(n_tokens)
                got = await client.generate("tiny", prompt, max_tokens=5, temperature=0.0)
                assert list(got.token_ids) == greedy_ids(whole, prompt, 5), f"{n_tokens} tokens"
            for n_tokens in (1, 10, CONTEXT - 1):
                prompt, n_free = prompt_of(n_tokens), CONTEXT - n_tokens
                got = await client.generate("tiny", prompt, max_tokens=n_free, temperature=0.0)
                assert list(got.token_ids) == greedy_ids(whole, prompt, n_free)
                assert (got.completion_tokens, got.finish_reason) == (n_free, "length")
                with pytest.raises(ContextExceededError, match=f"{n_free + 1}.*{CONTEXT}"):
                    await client.generate("tiny", prompt, max_tokens=n_free + 1, temperature=0.0)
            with pytest.raises(ContextExceededError, match=str(CONTEXT)):
                await client.generate("tiny", prompt_of(CONTEXT), max_tokens=1)
        assert (await route_answer(cluster, n_prompt_tokens=10, max_tokens=CONTEXT - 10)).status == 200
        refused = await route_answer(cluster, n_prompt_tokens=10, max_tokens=CONTEXT - 9)
        assert refused.status == ContextExceededError.status
        assert ContextExceededError.code.encode() in refused.body


async def test_two_models_on_the_same_workers_at_once_and_twenty_generations(tmp_path: Path) -> None:
    tiny, whole_tiny = packed_tiny(tmp_path, "llama")
    other, whole_other = packed_tiny(tmp_path, "gpt2", seed=3)
    async with whole_cluster(tmp_path, settle_s=1.5, placement="spread") as cluster:
        for name in ("one", "two"):
            await cluster.join(name)
        await cluster.add_model("tiny", tiny)
        await cluster.add_model("other", other)
        await cluster.until_ready("tiny")
        await cluster.until_ready("other")
        for worker in cluster.coordinator.cluster.state.workers.values():
            assert {span.model for span in worker.assignment.spans} == {"tiny", "other"}
        prompts = [prompt_of(1 + index, seed=index) for index in range(20)]
        models = ["other" if index % 2 else "tiny" for index in range(20)]
        async with cluster.client() as client, asyncio.TaskGroup() as tasks:
            running = [
                tasks.create_task(client.generate(model, prompt, max_tokens=12, temperature=0.0))
                for model, prompt in zip(models, prompts, strict=True)
            ]
        expected = [
            greedy_ids(whole_other if model == "other" else whole_tiny, prompt, 12)
            for model, prompt in zip(models, prompts, strict=True)
        ]
        assert [list(task.result().token_ids) for task in running] == expected


async def test_ranges_that_overlap_are_entered_partway(tmp_path: Path) -> None:
    packed, whole = packed_tiny(tmp_path, "llama")
    async with whole_cluster(tmp_path) as cluster:
        await cluster.add_model("tiny", packed)
        await cluster.join("low", "0:3")
        await cluster.join("high", "1:4")
        await cluster.until_ready()
        got = await cluster.generate("tiny", PROMPT, max_tokens=12)
        assert list(got.token_ids) == greedy_ids(whole, PROMPT, 12)
        first, second = got.route
        assert (first.start, second.end) == (0, 4)
        assert 1 <= first.end == second.start <= 3


async def test_of_two_replicas_one_is_taken_and_the_other_if_that_is_excluded_or_leaves(tmp_path: Path) -> None:
    packed, whole = packed_tiny(tmp_path, "llama")
    async with whole_cluster(tmp_path) as cluster:
        await cluster.add_model("tiny", packed)
        head = await cluster.join("head", "0:2")
        for name in ("replica-1", "replica-2"):
            await cluster.join(name, "2:4")
        await cluster.until_ready()
        got = await cluster.generate("tiny", PROMPT, max_tokens=8)
        taken = got.route[1].worker_id
        grant = (await route_answer(cluster, exclude=(taken,))).read(RouteGrant)
        (other,) = {hop.worker_id for hop in grant.hops} - {head.worker.worker_id}
        assert other != taken
        (leaving,) = [member for member in cluster.members.values() if member.worker.worker_id == taken]
        await leaving.stop()
        again = await cluster.generate("tiny", PROMPT, max_tokens=8)
        assert [stage.worker_id for stage in again.route] == [head.worker.worker_id, other]
        assert hop_ranges(again) == ["0:2", "2:4"]
        assert list(again.token_ids) == list(got.token_ids) == greedy_ids(whole, PROMPT, 8)
        refused = await route_answer(cluster, exclude=(other,))
        assert refused.status == ModelUnavailableError.status
        assert b"2:4" in refused.body
