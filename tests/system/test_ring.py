from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from protocol.ids import SessionId
from protocol.messages import CloseSession, SessionEnded, SessionOpened, Token
from tests.support.ring import CHUNK, OTHER_MODEL, OTHER_REVISION, running_ring
from tests.support.ring_generation import Generation, generated
from tests.support.tiny_checkpoint import TinyCheckpoint
from tests.support.waiting import eventually
from worker import connections

Checkpoints = Callable[[str], TinyCheckpoint]
PROMPT = [5, 9, 30, 4, 77, 12]


@pytest.fixture
def llama(checkpoint: Checkpoints) -> TinyCheckpoint:
    return checkpoint("llama")


@pytest.mark.parametrize("cuts", [(), (2,), (1, 3), (1, 2, 3)])
async def test_greedy_tokens_are_those_of_the_whole_model(
    llama: TinyCheckpoint, tmp_path: Path, cuts: tuple[int, ...]
) -> None:
    async with running_ring(llama, tmp_path, cuts) as ring:
        assert await generated(ring, PROMPT, 12) == llama.greedy(PROMPT, 12)
        await ring.until_clean()
        report = ring.workers[-1].reports[0]
        assert (report.n_prompt_tokens, report.n_completion_tokens, report.outcome) == (6, 12, "length")
        assert not any(worker.reports for worker in ring.workers[:-1])


@pytest.mark.parametrize("n_tokens", [1, CHUNK - 1, CHUNK, CHUNK + 1, 4 * CHUNK, 11 * CHUNK + 3])
async def test_prompts_of_all_lengths_flow_through_in_chunks(
    llama: TinyCheckpoint, tmp_path: Path, n_tokens: int
) -> None:
    prompt = [3 + index % 90 for index in range(n_tokens)]
    async with running_ring(llama, tmp_path, (1, 3)) as ring:
        assert await generated(ring, prompt, 5) == llama.greedy(prompt, 5)


async def test_the_context_can_be_filled_to_the_last_position(llama: TinyCheckpoint, tmp_path: Path) -> None:
    async with running_ring(llama, tmp_path, (2,)) as ring:
        found = await generated(ring, PROMPT, 1000, max_positions=16)
        assert found == llama.greedy(PROMPT, 10)


async def test_twenty_sessions_at_once_give_what_each_gives_alone(llama: TinyCheckpoint, tmp_path: Path) -> None:
    prompts = [[3 + (7 * index + k) % 90 for k in range(1 + index)] for index in range(20)]
    async with running_ring(llama, tmp_path, (1, 3)) as ring:
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(generated(ring, prompt, 6)) for prompt in prompts]
        assert [task.result() for task in running] == [llama.greedy(prompt, 6) for prompt in prompts]
        await ring.until_clean()


async def test_many_sessions_share_the_clients_two_connections(llama: TinyCheckpoint, tmp_path: Path) -> None:
    async with running_ring(llama, tmp_path, (2,)) as ring:
        head, tail = await ring.connect(ring.workers[0]), await ring.connect(ring.workers[1])
        names = [f"s{index}" for index in range(8)]
        found: dict[str, list[int]] = {name: [] for name in names}
        for name in names:
            generation = await Generation.prepared(ring, PROMPT, 5, session_id=name, head_wire=head, tail_wire=tail)
            await generation.begin()
        for _ in range(5 * len(names)):
            token = await tail.receive(Token)
            found[token.session_id].append(token.token_id)
        assert found == {name: llama.greedy(PROMPT, 5) for name in names}


async def test_two_models_at_once(checkpoint: Checkpoints, tmp_path: Path) -> None:
    llama, gpt2 = checkpoint("llama"), checkpoint("gpt2")
    async with running_ring(llama, tmp_path, (2,), also=gpt2) as ring, asyncio.TaskGroup() as tasks:
        first = tasks.create_task(generated(ring, PROMPT, 8))
        second = tasks.create_task(generated(ring, PROMPT, 8, model=OTHER_MODEL, revision=OTHER_REVISION))
        assert await first == llama.greedy(PROMPT, 8)
        assert await second == gpt2.greedy(PROMPT, 8)


async def test_seeded_sampling_is_the_same_however_the_model_is_cut(llama: TinyCheckpoint, tmp_path: Path) -> None:
    sampling = {"temperature": 0.9, "top_p": 0.95, "repetition_penalty": 1.2, "seed": 7}
    found = []
    for cuts in ((), (2,)):
        async with running_ring(llama, tmp_path, cuts) as ring:
            found.append(await generated(ring, PROMPT, 10, sampling=sampling))
    assert found[0] == found[1]


async def test_a_stop_token_is_sent_and_ends_the_answer(llama: TinyCheckpoint, tmp_path: Path) -> None:
    expected = llama.greedy(PROMPT, 6)
    stop = next(token for index, token in enumerate(expected) if index and token not in expected[:index])
    until = expected.index(stop) + 1
    async with running_ring(llama, tmp_path, (2,)) as ring:
        sampling = {"stop_token_ids": (stop,)}
        generation = await Generation.prepared(ring, PROMPT, 20, sampling=sampling)
        await generation.begin()
        tokens = await generation.tokens()
        assert [token.token_id for token in tokens] == expected[:until]
        assert tokens[-1].finish_reason == "stop"
        await ring.until_clean()
        assert ring.workers[-1].reports[0].outcome == "stop"


async def test_the_client_may_attach_before_it_opens(llama: TinyCheckpoint, tmp_path: Path) -> None:
    async with running_ring(llama, tmp_path, (2,)) as ring:
        generation = await Generation.prepared(ring, PROMPT, 4)
        await generation.attach()
        await generation.open()
        assert isinstance(await generation.head.receive(), SessionOpened)
        await generation.step()
        assert await generation.ids() == llama.greedy(PROMPT, 4)


async def test_the_client_may_attach_after_the_prompt_was_computed(llama: TinyCheckpoint, tmp_path: Path) -> None:
    async with running_ring(llama, tmp_path, (2,)) as ring:
        generation = await Generation.prepared(ring, PROMPT, 4)
        await generation.open()
        await generation.step()
        await generation.head.receive(SessionOpened)
        await generation.attach()
        assert await generation.ids() == llama.greedy(PROMPT, 4)


@pytest.mark.parametrize("by", ["head", "tail"])
@pytest.mark.parametrize("cuts", [(2,), (1, 3)])
async def test_cancelling_at_either_end_frees_all_workers(
    llama: TinyCheckpoint, tmp_path: Path, by: str, cuts: tuple[int, ...]
) -> None:
    async with running_ring(llama, tmp_path, cuts) as ring:
        generation = await Generation.prepared(ring, PROMPT, 50)
        await generation.begin()
        await generation.tail.receive(Token)
        await generation.cancel(generation.head if by == "head" else generation.tail)
        await ring.until_clean()
        await eventually(lambda: len(ring.workers[-1].reports) == 1)
        assert ring.workers[-1].reports[0].outcome == "cancelled"


async def test_cancelling_during_prefill_frees_all_workers(llama: TinyCheckpoint, tmp_path: Path) -> None:
    async with running_ring(llama, tmp_path, (1, 3)) as ring:
        generation = await Generation.prepared(ring, [7] * 50, 5)
        await generation.open()
        await generation.step()
        await generation.cancel(generation.head)
        await ring.until_clean()
        assert [worker.plane.n_sessions for worker in ring.workers] == [0, 0, 0]


@pytest.mark.parametrize("who", ["head", "tail", "both"])
async def test_a_client_that_vanishes_leaves_nothing(llama: TinyCheckpoint, tmp_path: Path, who: str) -> None:
    async with running_ring(llama, tmp_path, (1, 3)) as ring:
        generation = await Generation.prepared(ring, PROMPT, 50)
        await generation.begin()
        await generation.tail.receive(Token)
        if who != "tail":
            await generation.head.socket.close()
        if who != "head":
            await generation.tail.socket.close()
        await ring.until_clean()


async def test_a_worker_that_stops_ends_its_sessions_everywhere(llama: TinyCheckpoint, tmp_path: Path) -> None:
    async with running_ring(llama, tmp_path, (1, 3)) as ring:
        generation = await Generation.prepared(ring, PROMPT, 50)
        await generation.begin()
        await generation.tail.receive(Token)
        await ring.workers[1].plane.drain(0.0)
        ended = await generation.head.receive(SessionEnded)
        assert ended.worker_id == ring.workers[1].worker_id
        assert ended.error.code == "draining"
        assert (await generation.tail.receive(SessionEnded)).error.code == "hop_lost"
        await ring.until_clean()


async def test_deadline_ends_and_frees(llama: TinyCheckpoint, tmp_path: Path) -> None:
    async with running_ring(llama, tmp_path, (2,)) as ring:
        await generated(ring, PROMPT, 1)  # so that the workers know each other before the deadline's clock runs
        generation = await Generation.prepared(ring, PROMPT, 5)
        await generation.open(deadline_s=0.3)
        await generation.step()  # nobody attaches
        ended = await generation.head.receive(SessionEnded)
        assert ended.error.code == "deadline_exceeded"
        await ring.until_clean()
        await eventually(lambda: [r.outcome for r in ring.workers[-1].reports] == ["length", "deadline"])


async def test_draining_refuses_new_sessions_and_waits_for_the_old(llama: TinyCheckpoint, tmp_path: Path) -> None:
    async with running_ring(llama, tmp_path, ()) as ring:
        old = await Generation.prepared(ring, PROMPT, 30)
        await old.begin()
        await old.tail.receive(Token)
        async with asyncio.TaskGroup() as tasks:
            draining = tasks.create_task(ring.workers[0].plane.drain(20.0))
            await asyncio.sleep(0)
            new = await Generation.prepared(ring, PROMPT, 3)
            await new.open()
            assert (await new.head.receive(SessionEnded)).error.code == "draining"
            while (await old.tail.receive(Token)).finish_reason is None:
                pass
            await draining
        assert ring.is_clean()


async def test_head_and_tail_prompts_that_differ_are_told(llama: TinyCheckpoint, tmp_path: Path) -> None:
    async with running_ring(llama, tmp_path, (2,)) as ring:
        generation = await Generation.prepared(ring, PROMPT, 5)
        await generation.open()
        await generation.attach(PROMPT[:-1])
        await generation.step()
        assert (await generation.tail.receive(SessionEnded)).error.code == "protocol_error"
        assert (await generation.head.receive(SessionEnded)).error.code == "protocol_error"
        await ring.until_clean()


async def test_closing_twice_and_closing_what_is_over_do_no_harm(llama: TinyCheckpoint, tmp_path: Path) -> None:
    async with running_ring(llama, tmp_path, ()) as ring:
        wire = await ring.connect(ring.workers[0])
        closing = CloseSession(session_id=SessionId("x"), reason="cancelled")
        first = await Generation.prepared(ring, PROMPT, 30, head_wire=wire, tail_wire=wire)
        await first.begin()
        for _ in range(3):
            await first.cancel(wire)
            await wire.send(closing)
        second = await Generation.prepared(ring, PROMPT, 3, head_wire=wire, tail_wire=wire)
        await second.begin()
        found: list[int] = []
        while len(found) < 3:
            message = await wire.receive(Token)
            if message.session_id == second.session_id:
                found.append(message.token_id)
        assert found == llama.greedy(PROMPT, 3)


async def test_a_slow_reader_ends_its_own_session_and_delays_nobody(
    llama: TinyCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_ring(llama, tmp_path, (2,)) as ring:
        generation = await Generation.prepared(ring, PROMPT, 50)
        with monkeypatch.context() as patched:
            patched.setattr(connections, "MAX_QUEUED_TOKENS", 0)
            await generation.begin()
            assert (await generation.tail.receive(SessionEnded)).error.code == "overloaded"
            assert (await generation.head.receive(SessionEnded)).error.code == "overloaded"
        await ring.until_clean()
        assert await generated(ring, PROMPT, 4) == llama.greedy(PROMPT, 4)
