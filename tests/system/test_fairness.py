"""Two API keys on one worker: however many streams one has, the other's single stream goes on."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from client.api import Client
from protocol.errors import BrigadeError
from protocol.key_limits import KeyLimits
from tests.support.waiting import eventually
from tests.support.whole_cluster import packed_tiny, whole_cluster
from worker.engine_core import EngineCore
from worker.fairness import Tenant
from worker.steps import StepInput, StepOutput

N_STREAMS = 50
N_TOKENS = 24
Batch = Counter[Tenant]


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[Batch]:
    """Whose tokens, and how many, were in each batch that the worker ran."""
    ran: list[Batch] = []
    run_batch = EngineCore.run_batch

    def watched(core: EngineCore, steps: Sequence[StepInput]) -> Iterator[tuple[int, StepOutput | BrigadeError]]:
        batch: Batch = Counter()
        for step in steps:
            batch[core.sessions[step.session_id].spec.tenant] += step.n_tokens
        ran.append(batch)
        return run_batch(core, steps)

    monkeypatch.setattr(EngineCore, "run_batch", watched)
    return ran


async def test_a_single_stream_goes_on_beside_fifty_of_another_key(tmp_path: Path, batches: list[Batch]) -> None:
    """Counted in batches: alone, each of its tokens takes one; beside the others two at most, and one that waits.

    What batches take is in the tests of `worker.engine_thread`; here a key's share goes all the way from the key.
    """
    packed, _ = packed_tiny(tmp_path, "llama", eos_token_id=None)
    options = {"temperature": 0.0, "speculate": False}

    async def keep_asking(client: Client, i: int) -> None:
        while True:
            await client.generate("tiny", [5 + i, 6, 7], max_tokens=N_TOKENS, **options)

    async with whole_cluster(tmp_path) as cluster:
        await cluster.add_model("tiny", packed)
        await cluster.join("worker", "0:4", files=packed)
        await cluster.until_ready()
        async with (
            cluster.client(await cluster.new_key()) as many,
            cluster.client(await cluster.new_key(KeyLimits(priority="high"))) as one,
            asyncio.TaskGroup() as tasks,
        ):
            asking = [tasks.create_task(keep_asking(many, i), name=f"stream-{i}") for i in range(N_STREAMS)]
            await eventually(lambda: sum(map(Counter.total, batches)) > 4 * N_STREAMS)
            (others,) = set().union(*batches)
            generation = await one.generate("tiny", [9, 7, 5], max_tokens=N_TOKENS, **options)
            for task in asking:
                task.cancel()
    assert len(generation.token_ids) == N_TOKENS
    mine = [i for i, batch in enumerate(batches) if batch.keys() - {others}]
    during = batches[mine[0] : mine[-1] + 1]
    assert len(mine) == N_TOKENS
    assert len(during) <= 3 * len(mine)
    assert sum(batch[others] for batch in during) > N_TOKENS, "the others went on as well"
    (tenant,) = set().union(*batches) - {others}
    assert (tenant.priority, others.priority) == ("high", "normal")
    assert len({tenant.label, others.label, ""}) == 3
