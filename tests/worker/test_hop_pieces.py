"""In which pieces hops run what they are sent."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import torch

from protocol.ids import BlockRange
from protocol.messages import (
    OpenSession,
    SessionOpened,
)
from protocol.tickets import sign_claims
from tests.support.fake_worker import fake_worker, opened_by
from tests.support.hidden_steps import SESSION, hidden_step
from tests.support.ring import Ring, running_ring
from tests.support.ring_generation import Generation, generated
from tests.support.tiny_checkpoint import TinyCheckpoint
from tests.support.waiting import eventually
from worker.prompt_costs import PromptCosts, RunStep, StepCost

Checkpoints = Callable[[str], TinyCheckpoint]
COST = StepCost(base=0.004, per_token=0.3e-3, per_pair=0.3e-6)


@pytest.fixture
async def cutting_ring(checkpoint: Checkpoints, tmp_path: Path) -> AsyncIterator[Ring]:
    """A ring that cuts prompts by what its head has measured."""
    async with running_ring(checkpoint("llama"), tmp_path, (2,), chunk_tokens=None) as ring:
        measure(ring, 0, COST)
        yield ring


def measure(ring: Ring, index: int, cost: StepCost) -> None:
    """As if a worker had run a prompt of 1,024 tokens; `cost`: of each block."""
    costs = PromptCosts(cost.base)
    for position in range(0, 1024, 128):
        costs = costs.with_step(RunStep(128, position, cost.seconds(128, position)))
    engine = ring.workers[index].engine
    engine.measures.prompt_costs[engine.loaded()[0].key] = costs


def lengths_run(ring: Ring, index: int) -> list[int]:
    """The tokens of each forward that a worker is going to run."""
    lengths: list[int] = []
    ring.workers[index].engine.measures.observe = lambda forward: lengths.append(forward.n_tokens)
    return lengths


async def test_a_route_of_a_coordinator_that_does_not_say_its_hops_is_cut_for_all_of_them(
    cutting_ring: Ring,
) -> None:
    lengths = lengths_run(cutting_ring, 0)
    await generated(cutting_ring, [5] * 300, 1, max_positions=310)
    assert len(lengths) > 3


async def test_the_head_learns_what_the_later_hops_take_and_cuts_by_it_and_no_client_is_told(
    cutting_ring: Ring,
) -> None:
    measure(cutting_ring, 1, COST.of_blocks(3))
    lengths = lengths_run(cutting_ring, 0)
    generation = await Generation.prepared(cutting_ring, [6] * 300, 1, max_positions=310)
    await generation.open()
    assert (await generation.head.receive(SessionOpened)).prompt_costs == ()
    await generation.cancel(generation.head)
    await cutting_ring.until_clean()
    await generated(cutting_ring, [7] * 300, 1, max_positions=310)
    assert lengths[0] < lengths[1]


async def test_what_the_client_of_a_private_session_has_cut_is_run_as_it_is(cutting_ring: Ring) -> None:
    lengths = lengths_run(cutting_ring, 0)
    tickets = [
        sign_claims(
            cutting_ring.ticket(
                SESSION, index, is_private=True, n_hops=2, max_positions=310, blocks=BlockRange(*blocks)
            ),
            [cutting_ring.workers[index].ticket_key],
        )
        for index, blocks in enumerate([(1, 2), (2, 3)])
    ]
    client = await cutting_ring.connect(cutting_ring.workers[0])
    await client.send(OpenSession(session_id=SESSION, tickets=tuple(tickets), deadline_s=30.0))
    for position in (0, 128):
        await client.send(*hidden_step(torch.ones(128, 32), position, is_last=False))
    await eventually(lambda: sum(lengths) == 256)
    assert lengths == [128, 128]


@pytest.mark.parametrize(("n_others", "expected"), [(0, [200]), (1, [100, 100])])
async def test_a_long_piece_of_another_worker_is_cut_where_others_wait_for_tokens(
    cutting_ring: Ring, tmp_path: Path, n_others: int, expected: list[int]
) -> None:
    tail = cutting_ring.workers[1]
    async with fake_worker(cutting_ring.authority, tmp_path) as fake:
        ways = {"head": fake.files.worker_id, "head_url": fake.url, "max_positions": 210}
        for index in range(n_others):
            other = await opened_by(cutting_ring, fake.files, tail, f"other {index}", **ways)
            await other.receive(SessionOpened)
        wire = await opened_by(cutting_ring, fake.files, tail, SESSION, **ways)
        await wire.receive(SessionOpened)
        lengths = lengths_run(cutting_ring, 1)
        await wire.send(*hidden_step(torch.ones(200, 32), is_last=False))
        await eventually(lambda: sum(lengths) == 200)
    assert lengths == expected
