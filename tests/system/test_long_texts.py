"""Models that rotate long texts otherwise than short ones: what transformers generates, however workers cut it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from protocol.ids import SessionId
from protocol.messages import SessionEnded, SessionOpened, SharedPrefix, Token
from tests.support.long_texts import LONG_CONFIGS, ORIGINAL, RUN_ANEW, greedy_answer
from tests.support.ring import Ring, running_ring
from tests.support.ring_generation import Generation
from tests.support.tiny_checkpoint import TinyCheckpoint
from tests.support.whole_cluster import packed_tiny, whole_cluster
from tests.system.test_take_over import break_at

Checkpoints = Callable[[str], TinyCheckpoint]
LENGTHS = (ORIGINAL - 6, ORIGINAL, ORIGINAL + 1, ORIGINAL + 9)
N_ANSWER = 12


def text(n_tokens: int, seed: int = 3) -> list[int]:
    return [3 + (seed * 7 + 11 * index * index) % 90 for index in range(n_tokens)]


@dataclass
class Part:
    """What one session gave."""

    session_id: str
    token_ids: list[int]
    n_cached: int
    is_outgrown: bool
    has_failed: bool


async def part(ring: Ring, prompt: list[int], n_tokens: int, n_prompt: int, **changes: Any) -> Part:
    """One session, to its end or until it breaks off."""
    generation = await Generation.prepared(ring, prompt, n_tokens, n_prompt=n_prompt, **changes)
    await generation.begin()
    opened = await generation.head.receive(SessionOpened)
    found: list[int] = []
    is_outgrown = has_failed = False
    while True:
        message = await generation.tail.receive((Token, SessionEnded))
        if isinstance(message, SessionEnded):
            has_failed = True
            break
        found.append(message.token_id)
        is_outgrown = message.is_outgrown
        if message.finish_reason is not None:
            break
    return Part(generation.session_id, found, opened.n_cached, is_outgrown, has_failed)


async def answered(ring: Ring, prompt: list[int], **changes: Any) -> list[int]:
    """A whole answer, by another session where the text is to be run anew."""
    first = await part(ring, prompt, N_ANSWER, len(prompt), **changes)
    if not first.is_outgrown:
        return first.token_ids
    so_far = prompt + first.token_ids
    second = await part(ring, so_far, N_ANSWER - len(first.token_ids), len(so_far))
    assert not second.is_outgrown
    return first.token_ids + second.token_ids


@pytest.mark.parametrize("name", LONG_CONFIGS)
async def test_prompts_of_any_length_are_answered_as_transformers_does(
    checkpoint: Checkpoints, tmp_path: Path, name: str
) -> None:
    whole = checkpoint(name)
    async with running_ring(whole, tmp_path, (2,)) as ring:
        for length in LENGTHS:
            expected = greedy_answer(whole.model, text(length), N_ANSWER)
            assert await answered(ring, text(length), speculates=True) == expected
        await ring.until_clean()


@pytest.mark.parametrize("name", LONG_CONFIGS)
async def test_text_that_is_to_be_run_anew_is_said_at_the_length_at_which_it_is(
    checkpoint: Checkpoints, tmp_path: Path, name: str
) -> None:
    async with running_ring(checkpoint(name), tmp_path, (2,)) as ring:
        found = await part(ring, text(10), N_ANSWER, 10)
        assert found.is_outgrown == (name in RUN_ANEW)
        assert len(found.token_ids) == (ORIGINAL + 1 - 10 if found.is_outgrown else N_ANSWER)
        unsaid = await part(ring, text(10), N_ANSWER, 0)
        assert (unsaid.is_outgrown, len(unsaid.token_ids)) == (False, N_ANSWER)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", set(LONG_CONFIGS) - set(RUN_ANEW))
async def test_what_breaks_off_goes_on_as_it_was_rotated(
    checkpoint: Checkpoints, tmp_path: Path, name: str, length: int
) -> None:
    whole, prompt = checkpoint(name), text(length)
    for victim in (0, 1):
        async with running_ring(whole, tmp_path / str(victim), (2,), has_spares=True) as ring:
            await break_at(ring.workers[victim], -(-length // 4) + 9)
            first = await part(ring, prompt, N_ANSWER, length)
            assert first.has_failed
            so_far = prompt + first.token_ids
            n_left = N_ANSWER - len(first.token_ids)
            second = await part(
                ring.with_spare(victim), so_far, n_left, length, continues=SessionId(first.session_id)
            )
            assert first.token_ids + second.token_ids == greedy_answer(whole.model, prompt, N_ANSWER)
            assert bool(second.n_cached) == (victim == 1), "who was there goes on with what it has"


@pytest.mark.parametrize(
    ("first_length", "second_length", "is_shared"),
    [(5, 9, True), (5, ORIGINAL + 4, False), (ORIGINAL + 1, ORIGINAL + 9, True)],
    ids=["both short", "grown long", "both long"],
)
async def test_a_second_turn_begins_with_what_was_rotated_alike(
    checkpoint: Checkpoints, tmp_path: Path, first_length: int, second_length: int, is_shared: bool
) -> None:
    whole = checkpoint("llama_longrope")
    async with running_ring(whole, tmp_path, (2,)) as ring:
        first = await part(ring, text(first_length), 2, first_length)
        prompt = [*text(first_length), *first.token_ids]
        prompt += text(second_length - len(prompt), seed=5)
        prefix = SharedPrefix(session_id=SessionId(first.session_id), n_positions=first_length + 1)
        second = await part(ring, prompt, N_ANSWER, second_length, prefix=prefix)
        assert second.n_cached == (first_length + 1 if is_shared else 0)
        assert second.token_ids == greedy_answer(whole.model, prompt, N_ANSWER)


async def test_sessions_on_both_sides_of_the_length_run_beside_each_other(
    checkpoint: Checkpoints, tmp_path: Path
) -> None:
    whole = checkpoint("llama_longrope")
    prompts = [text(length, seed) for seed, length in enumerate(LENGTHS)]
    async with running_ring(whole, tmp_path, (2,)) as ring:
        found = await asyncio.gather(*(answered(ring, prompt) for prompt in prompts))
    assert found == [greedy_answer(whole.model, prompt, N_ANSWER) for prompt in prompts]


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", ["llama_longrope", "phi3_longrope"])
async def test_clients_get_what_transformers_generates(tmp_path: Path, name: str) -> None:
    packed, whole = packed_tiny(tmp_path, name, eos_token_id=None)
    async with whole_cluster(tmp_path) as cluster:
        await cluster.add_model("tiny", packed)
        for member, blocks in (("head", "0:2"), ("tail", "2:4")):
            await cluster.join(member, blocks, files=packed)
        await cluster.until_ready()
        async with cluster.client() as client:
            for length in LENGTHS:
                prompt, options = text(length), {"max_tokens": N_ANSWER, "temperature": 0.0}
                expected = greedy_answer(whole, prompt, N_ANSWER)
                found = await client.generate("tiny", prompt, **options)
                assert (list(found.token_ids), found.finish_reason, found.failovers) == (expected, "length", 0)
                private = await client.generate("tiny", prompt, private=True, **options)
                assert list(private.token_ids) == expected
                more = [*prompt, *found.token_ids[:4], 8, 9]
                again = await client.generate("tiny", more, **options)
                assert list(again.token_ids) == greedy_answer(whole, more, N_ANSWER)
