"""A head's draft model: the same answers in fewer rounds, on links that are worth it; told to who looks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from structlog.testing import capture_logs

from benchmarks.held_ports import held_port
from benchmarks.relay import Relay
from client.results import Generation
from protocol.control_messages import SpanAssignment
from protocol.errors import ConfigError
from protocol.ids import BlockRange, ModelName, Revision, SessionId
from protocol.messages import MAX_DRAFTS
from tests.support.tiny_checkpoint import WHOLE, TinyCheckpoint
from tests.support.waiting import eventually
from tests.support.whole_cluster import WholeCluster, greedy_ids, packed_tiny, whole_cluster
from worker.draft_model import MAX_POSITIONS, DraftModelRequest
from worker.engine import Engine
from worker.holdings import Holdings
from worker.ready_words import ready_lines
from worker.speculation import DraftPrior, ModelReach, Round, Rounds
from worker.steps import SessionSpec

PROMPT = [5, 9, 30, 4, 77, 12, 8, 61, 33, 20]
N_TOKENS = 40
LATER = BlockRange(2, 4)
DELAY_S = 0.02
CHANGES = {"max_position_embeddings": 4096, "eos_token_id": None}
SAMPLED = {"temperature": 0.9, "top_p": 0.95, "seed": 7}


@asynccontextmanager
async def drafting_cluster(folder: Path, draft: Path) -> AsyncIterator[tuple[WholeCluster, list[Relay], Any]]:
    """A head with a draft model and a tail, behind relays."""
    packed, whole = packed_tiny(folder, "llama", **CHANGES)
    async with whole_cluster(folder) as cluster, AsyncExitStack() as stack:
        await cluster.add_model("tiny", packed)
        relays = []
        for name, blocks, model in (("head", "0:2", draft), ("tail", "2:4", None)):
            port = stack.enter_context(held_port())
            relays.append(await stack.enter_async_context(Relay("127.0.0.1", port)))
            url = f"https://127.0.0.1:{relays[-1].port}"
            listening = {"listen_host": "127.0.0.1", "listen_port": port, "advertise_url": url}
            await cluster.join(name, blocks, files=packed, draft_model=model, **listening)
        await cluster.until_ready()
        yield cluster, relays, whole


async def both(cluster: WholeCluster, relays: list[Relay], **sampling: Any) -> tuple[Generation, Generation]:
    """The same generation token by token, and with guesses; both are over at the workers too, and logged."""
    for relay in relays:
        relay.delay_s = DELAY_S
    plain = await cluster.generate("tiny", PROMPT, max_tokens=N_TOKENS, speculate=False, **sampling)
    guessed = await cluster.generate("tiny", PROMPT, max_tokens=N_TOKENS, **sampling)
    for relay in relays:
        relay.delay_s = 0.0
    await eventually(lambda: not any(member.worker.data_plane.n_sessions for member in cluster.members.values()))
    return plain, guessed


def n_by_model(logs: list[Any]) -> tuple[int, int]:
    """Of the last session that a head has logged: what the model guessed, and what of it held."""
    (*_, last) = [log for log in logs if log["event"] == "session_ended" and "n_drafted_by_model" in log]
    return last["n_drafted_by_model"], last["n_accepted_by_model"]


async def test_a_model_that_guesses_well_gives_the_same_answer_in_fewer_rounds(tmp_path: Path) -> None:
    packed_tiny(tmp_path / "draft", "llama", **CHANGES)
    async with drafting_cluster(tmp_path, tmp_path / "draft" / "llama-0") as (cluster, relays, whole):
        head = cluster.members["head"]
        assert [status.note for status in head.statuses] == ["drafts with llama-0 where that pays"]
        assert any("drafts with llama-0 where that pays" in line for line in head.lines)
        with capture_logs() as logs:
            plain, guessed = await both(cluster, relays)
        assert list(plain.token_ids) == list(guessed.token_ids) == greedy_ids(whole, PROMPT, N_TOKENS)
        assert (plain.drafted_tokens, plain.accepted_tokens) == (0, 0)
        assert N_TOKENS / 3 < guessed.accepted_tokens <= guessed.drafted_tokens
        n_drafted, n_accepted = n_by_model(logs)
        # the last round, of a few guesses or of many, is one whose outcome no head hears of
        assert n_accepted > (n_drafted - MAX_DRAFTS) / 2
        assert n_accepted > 0
        with capture_logs() as logs:
            plain, guessed = await both(cluster, relays, **SAMPLED)
        assert plain.token_ids == guessed.token_ids
        assert n_by_model(logs)[0] > 0


async def test_a_model_that_guesses_badly_changes_nothing(tmp_path: Path) -> None:
    packed_tiny(tmp_path / "draft", "llama", seed=3, **CHANGES)
    async with drafting_cluster(tmp_path, tmp_path / "draft" / "llama-3") as (cluster, relays, whole):
        with capture_logs() as logs:
            _, guessed = await both(cluster, relays)
        assert list(guessed.token_ids) == greedy_ids(whole, PROMPT, N_TOKENS)
        assert n_by_model(logs)[0] < N_TOKENS


async def test_a_model_of_another_vocabulary_is_said_and_left_alone(
    checkpoint: Callable[[str], TinyCheckpoint], tmp_path: Path
) -> None:
    packed_tiny(tmp_path, "llama", vocab_size=64)
    llama, holdings = checkpoint("llama"), Holdings()
    async with Engine(device=torch.device("cpu"), kv_budget_bytes=2**20, n_threads=1) as engine:
        await engine.drafter.load(DraftModelRequest(path=tmp_path / "llama-0", precision="float32"))
        loaded = await engine.load(llama.request(WHOLE))
        holdings.add(ModelName("tiny"), loaded)
        assert holdings.note_of(loaded.key).startswith(
            "doesn't draft: the draft model llama-0 has 64 tokens and this model "
        )
        assert engine.drafter.reach(engine.loaded(), loaded.key, 100) is None


async def test_a_model_beside_blocks_that_no_session_begins_in_is_said_to_do_nothing(
    checkpoint: Callable[[str], TinyCheckpoint],
) -> None:
    llama, span = checkpoint("llama"), SpanAssignment(model=ModelName("m"), revision=Revision("r"), blocks=LATER)
    async with Engine(device=torch.device("cpu"), kv_budget_bytes=2**22, n_threads=1) as engine:
        assert (await engine.load(llama.request(WHOLE))).drafting is None
        await engine.drafter.load(DraftModelRequest(path=llama.folder, precision="float32"))
        loaded = await engine.load(llama.request(LATER))
        (_, warning) = ready_lines(span, loaded, device="cpu", wire="auto", kv_budget_bytes=2**22)
        assert warning.startswith("WARNING: --draft-model does nothing here: generations begin in block 0, ")
        assert engine.drafter.reach(engine.loaded(), loaded.key, 100) is None


async def test_a_session_that_was_closed_meanwhile_is_not_begun_again(
    checkpoint: Callable[[str], TinyCheckpoint],
) -> None:
    llama = checkpoint("llama")
    async with Engine(device=torch.device("cpu"), kv_budget_bytes=2**22, n_threads=1) as engine:
        model = await engine.drafter.load(DraftModelRequest(path=llama.folder, precision="float32"))
        loaded = await engine.load(llama.request(WHOLE))
        reach = ModelReach(times=model.times, max_positions=MAX_POSITIONS)
        turn = Round(settled=(5,), drafts=(), n_wanted=1)

        async def guesses(name: str) -> tuple[int, ...]:
            rounds = Rounds(DraftPrior(), 100, reach)
            return (await engine.drafter.completed(turn, rounds, SessionId(name), PROMPT)).drafts

        for name in ("first", "second"):
            session = SessionSpec(
                session_id=SessionId(name), span=loaded.key, blocks=loaded.key.blocks, n_positions=20
            )
            await engine.open_session(session, deadline_s=5)
            assert await guesses(name) == tuple(llama.greedy(PROMPT, 1))
            await engine.close_session(SessionId(name))
            assert await guesses(name) == ()


async def test_a_model_that_is_none_leaves_the_engine_alive(tmp_path: Path) -> None:
    async with Engine(device=torch.device("cpu"), kv_budget_bytes=2**20, n_threads=1) as engine:
        with pytest.raises(ConfigError, match="isn't there"):
            await engine.drafter.load(DraftModelRequest(path=tmp_path / "none", precision="float32"))
        assert engine.loaded() == ()
