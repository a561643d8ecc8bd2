"""Texts that begin as earlier ones: the same tokens, and what workers have already isn't run again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from protocol.ids import SessionId
from protocol.messages import CloseSession, SessionOpened, SharedPrefix
from tests.support.ring import Ring, running_ring
from tests.support.ring_generation import Generation
from tests.support.tiny_checkpoint import TinyCheckpoint
from tests.support.waiting import eventually
from tests.support.whole_cluster import greedy_ids, packed_tiny, whole_cluster

Checkpoints = Callable[[str], TinyCheckpoint]
FIRST = [5, 9, 30, 4, 77, 12, 8, 61, 33, 20]
N_ANSWER = 12
MORE = [11, 3, 90, 7]


@pytest.fixture
def llama(checkpoint: Checkpoints) -> TinyCheckpoint:
    return checkpoint("llama")


def n_run(ring: Ring) -> list[int]:
    return [worker.engine.stats().n_positions_run for worker in ring.workers]


async def turn(
    ring: Ring, prompt: list[int], earlier: str | None = None, n_shared: int = 0
) -> tuple[str, list[int], int]:
    """A generation to its end: session, answer, and how many positions the head says that it had."""
    prefix = SharedPrefix(session_id=SessionId(earlier), n_positions=n_shared) if earlier is not None else None
    generation = await Generation.prepared(ring, prompt, N_ANSWER, prefix=prefix)
    await generation.begin()
    opened = await generation.head.receive(SessionOpened)
    answer = await generation.ids()
    return generation.session_id, answer, opened.n_cached


@pytest.mark.parametrize("cuts", [(), (2,), (1, 3)], ids=["one worker", "two", "three"])
async def test_the_next_turn_of_a_chat_runs_only_what_is_new(
    llama: TinyCheckpoint, tmp_path: Path, cuts: tuple[int, ...]
) -> None:
    async with running_ring(llama, tmp_path, cuts) as ring:
        first, answer, _ = await turn(ring, FIRST)
        before = n_run(ring)
        prompt = FIRST + answer + MORE
        n_shared = len(FIRST) + N_ANSWER - 1
        _, answer, n_cached = await turn(ring, prompt, first, n_shared)
        assert answer == llama.greedy(prompt, N_ANSWER)
        assert n_cached == n_shared
        n_new = 1 + len(MORE) + N_ANSWER - 1
        assert [after - old for after, old in zip(n_run(ring), before, strict=True)] == [n_new] * len(ring.workers)
        await ring.until_clean()


async def test_texts_that_share_a_beginning_each_copy_it(llama: TinyCheckpoint, tmp_path: Path) -> None:
    async with running_ring(llama, tmp_path, (2,)) as ring:
        first, _, _ = await turn(ring, FIRST)
        before = n_run(ring)
        prompts = [[*FIRST[:7], 40 + i, 3, 9] for i in range(4)]
        found = await asyncio.gather(*(turn(ring, prompt, first, 7) for prompt in prompts))
        assert [answer for _, answer, _ in found] == [llama.greedy(prompt, N_ANSWER) for prompt in prompts]
        assert [n_cached for _, _, n_cached in found] == [7] * 4
        assert [after - old for after, old in zip(n_run(ring), before, strict=True)] == [4 * (3 + N_ANSWER - 1)] * 2
        same = await turn(ring, FIRST, first, len(FIRST) - 1)
        assert same[1] == llama.greedy(FIRST, N_ANSWER)


@pytest.mark.parametrize("victim", [0, 1, 2], ids=["head", "middle", "tail"])
async def test_a_hop_that_has_lost_it_is_sent_what_it_lacks(
    llama: TinyCheckpoint, tmp_path: Path, victim: int
) -> None:
    async with running_ring(llama, tmp_path, (1, 3)) as ring:
        first, _, _ = await turn(ring, FIRST)
        await ring.until_clean()
        ring.workers[victim].engine.forget_parked(1e12)
        before = n_run(ring)
        prompt = FIRST + MORE
        _, answer, _ = await turn(ring, prompt, first, len(FIRST))
        assert answer == llama.greedy(prompt, N_ANSWER)
        n_new, n_all = len(MORE) + N_ANSWER - 1, len(prompt) + N_ANSWER - 1
        expected = [n_all if index == victim else n_new for index in range(3)]
        assert [after - old for after, old in zip(n_run(ring), before, strict=True)] == expected


async def test_a_client_that_names_too_much_is_believed_by_nobody(llama: TinyCheckpoint, tmp_path: Path) -> None:
    async with running_ring(llama, tmp_path, (1, 3)) as ring:
        first, _, _ = await turn(ring, FIRST)
        other = [*FIRST[:4], 70, 71, 72, 73, 74, 75]
        _, answer, _ = await turn(ring, other, first, 9)
        assert answer == llama.greedy(other, N_ANSWER)


async def test_what_was_cancelled_is_of_use_too(llama: TinyCheckpoint, tmp_path: Path) -> None:
    async with running_ring(llama, tmp_path, (2,)) as ring:
        broken = await Generation.prepared(ring, FIRST, N_ANSWER)
        await broken.open()
        await broken.step()  # nobody attaches: the tail waits before the last of three chunks
        await eventually(lambda: n_run(ring) == [10, 6])
        await broken.head.send(CloseSession(session_id=SessionId(broken.session_id), reason="cancelled"))
        _, answer, n_cached = await turn(ring, FIRST, broken.session_id, 9)
        assert answer == llama.greedy(FIRST, N_ANSWER)
        assert n_cached == 9
        assert n_run(ring) == [10 + 1 + N_ANSWER - 1, 6 + 4 + N_ANSWER - 1]


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_a_chat_goes_on_where_it_was(tmp_path: Path) -> None:
    packed, whole = packed_tiny(tmp_path, "llama", eos_token_id=None)
    prompt = [3 + 7 * index % 90 for index in range(40)]
    options = {"max_tokens": 6, "temperature": 0.0, "speculate": False}
    async with whole_cluster(tmp_path) as cluster:
        await cluster.add_model("tiny", packed)
        for name, blocks in (("head", "0:2"), ("tail", "2:4")):
            await cluster.join(name, blocks, files=packed)
        await cluster.until_ready()

        def n_all() -> int:
            return sum(member.worker.engine.stats().n_positions_run for member in cluster.members.values())

        async with cluster.client() as client, cluster.client() as another:
            first = await client.generate("tiny", prompt, **options)
            assert (first.cached_tokens, n_all()) == (0, 2 * (40 + 5))
            more = [*prompt, *first.token_ids, 8, 9, 10]
            second = await client.generate("tiny", more, **options)
            assert list(second.token_ids) == greedy_ids(whole, more, 6)
            assert second.cached_tokens == 45
            assert second.route == first.route
            assert n_all() == 2 * (40 + 5) + 2 * (len(more) - 45 + 5)
            third = await another.generate("tiny", more, **options)
            assert (third.token_ids, third.cached_tokens) == (second.token_ids, 0)
