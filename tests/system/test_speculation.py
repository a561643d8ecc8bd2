"""Guessed tokens: the same answers as without them in fewer rounds, whatever is sampled and whoever fails."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from protocol.errors import InternalError
from protocol.ids import SessionId
from protocol.messages import SessionEnded, SharedPrefix, Step, Token
from tests.support.ring import Ring, running_ring
from tests.support.ring_generation import Generation, generated, ids_payload
from tests.support.tiny_checkpoint import TinyCheckpoint
from tests.support.whole_cluster import greedy_ids, packed_tiny, whole_cluster
from tests.system.test_take_over import break_at
from worker.drafts_worth import DraftShares
from worker.server import DataPlane

Checkpoints = Callable[[str], TinyCheckpoint]
PROMPT = [5, 9, 30, 4, 77, 12, 8, 61, 33, 20] * 2
N_TOKENS = 36
N_LONG = 600
"""So many that a worker which is told to vanish early on has done so long before the end."""
N_PLAIN = len(PROMPT) + N_TOKENS - 1
"""Positions that are run without guesses."""
SAMPLED = {"temperature": 0.4, "top_p": 0.95, "repetition_penalty": 1.05, "seed": 7}


@pytest.fixture
def llama(checkpoint: Checkpoints) -> TinyCheckpoint:
    return checkpoint("llama")


def make_guesses_cheap(planes: Iterable[DataPlane]) -> None:
    """Have every head believe that more positions in a round cost nothing, so that it tries."""
    for plane in planes:
        assert plane._sessions is not None
        plane._sessions._shared.draft_prior.shares = DraftShares(guessing=0.0, draft=0.0)


def n_run(ring: Ring) -> list[int]:
    return [worker.engine.stats().n_positions_run for worker in ring.workers]


@pytest.mark.parametrize(
    ("cuts", "sampling"), [((), {}), ((1, 3), {}), ((1, 3), SAMPLED)], ids=["one worker", "three", "three, sampled"]
)
async def test_the_answer_is_the_same_with_guesses_and_without(
    llama: TinyCheckpoint, tmp_path: Path, cuts: tuple[int, ...], sampling: dict[str, Any]
) -> None:
    async with running_ring(llama, tmp_path, cuts) as ring:
        make_guesses_cheap(worker.plane for worker in ring.workers)
        plain = await generated(ring, PROMPT, N_TOKENS, sampling=dict(sampling))
        assert n_run(ring) == [N_PLAIN] * len(ring.workers)
        assert await generated(ring, PROMPT, N_TOKENS, sampling=dict(sampling), speculates=True) == plain
        await ring.until_clean()
        assert all(n_both > 2 * N_PLAIN for n_both in n_run(ring))  # some guesses didn't hold
        assert [report.n_completion_tokens for report in ring.workers[-1].reports] == [N_TOKENS] * 2
        if not sampling:
            assert plain == llama.greedy(PROMPT, N_TOKENS)


async def answer(ring: Ring, so_far: list[int], **changes: Any) -> tuple[str, list[int], SessionEnded | None]:
    """Generate what is left, to the end or until it breaks off."""
    generation = await Generation.prepared(
        ring, PROMPT + so_far, N_TOKENS - len(so_far), speculates=True, **changes
    )
    await generation.begin()
    found: list[int] = []
    while True:
        message = await generation.tail.receive((Token, SessionEnded))
        if isinstance(message, SessionEnded):
            return generation.session_id, found, message
        assert message.index == len(found)
        found.append(message.token_id)
        if message.finish_reason is not None:
            return generation.session_id, found, None


@pytest.mark.parametrize(
    ("victim", "sampling"), [(0, {}), (1, SAMPLED), (2, {})], ids=["head", "middle, sampled", "tail"]
)
async def test_a_generation_that_breaks_off_among_guesses_goes_on_with_the_same_tokens(
    llama: TinyCheckpoint, tmp_path: Path, victim: int, sampling: dict[str, Any]
) -> None:
    async with running_ring(llama, tmp_path, (1, 3), has_spares=True) as ring:
        unbroken = await generated(ring, PROMPT, N_TOKENS, sampling=dict(sampling))
        make_guesses_cheap(worker.plane for worker in ring.workers)
        await break_at(ring.workers[victim], 5 + 3, InternalError("broken on purpose"))
        session_id, first, ended = await answer(ring, [], sampling=dict(sampling))
        assert ended is not None
        assert ended.worker_id == ring.workers[victim].worker_id
        await ring.until_clean()
        second_ring = ring.with_spare(victim)
        changes = {"sampling": dict(sampling), "continues": SessionId(session_id)}
        _, second, ended = await answer(second_ring, first, **changes)
        assert ended is None
        assert first + second == unbroken
        await second_ring.until_clean()


async def test_guesses_leave_the_next_turn_nothing_but_text(llama: TinyCheckpoint, tmp_path: Path) -> None:
    async with running_ring(llama, tmp_path, (1, 3)) as ring:
        make_guesses_cheap(worker.plane for worker in ring.workers)
        session_id, first, _ = await answer(ring, [])
        await ring.until_clean()
        n_before = n_run(ring)
        n_shared = len(PROMPT) + N_TOKENS - 1
        prefix = SharedPrefix(session_id=SessionId(session_id), n_positions=n_shared)
        second = [*PROMPT, *first, 7]
        assert await generated(ring, second, 3, prefix=prefix) == llama.greedy(second, 3)
        await ring.until_clean()
        n_new = [now - before for now, before in zip(n_run(ring), n_before, strict=True)]
        assert all(n < len(second) for n in n_new)


async def test_a_workers_death_among_guesses_is_not_seen_in_the_answer(tmp_path: Path) -> None:
    packed, whole = packed_tiny(tmp_path, "llama", max_position_embeddings=4096, eos_token_id=None)
    async with whole_cluster(tmp_path) as cluster:
        await cluster.add_model("tiny", packed)
        for name, blocks in (("head", "0:2"), ("a", "2:4"), ("b", "2:4")):
            await cluster.join(name, blocks, files=packed)
        await cluster.until_ready()
        members = {member.worker.worker_id: member for member in cluster.members.values()}
        make_guesses_cheap(member.worker.data_plane for member in members.values())
        async with (
            cluster.client() as client,
            client.stream("tiny", PROMPT, max_tokens=N_LONG, temperature=0.0) as pieces,
        ):
            n_before = 0
            async for _ in pieces:
                n_before += 1
                if n_before == 30:
                    await members[pieces.result.route[-1].worker_id].vanish()
            result = pieces.result
        assert list(result.token_ids) == greedy_ids(whole, PROMPT, N_LONG)
        assert (result.failovers, result.finish_reason) == (1, "length")
        n_run_by_head = cluster.members["head"].worker.engine.stats().n_positions_run
        assert n_run_by_head > len(PROMPT) + N_LONG + 1  # some guesses didn't hold


async def test_a_client_that_makes_guesses_itself_is_refused(llama: TinyCheckpoint, tmp_path: Path) -> None:
    async with running_ring(llama, tmp_path) as ring:
        generation = await Generation.prepared(ring, PROMPT)
        await generation.open()
        step = Step(
            session_id=SessionId(generation.session_id),
            position=0,
            n_tokens=len(PROMPT),
            dtype="int32",
            is_last=True,
            drafts=(33, 20),
        )
        await generation.head.send(step, ids_payload(PROMPT))
        assert (await generation.head.receive(SessionEnded)).error.code == "protocol_error"
        await ring.until_clean()
