"""Private generations: the same tokens, and no worker sees one, nor how they are sampled."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from client.api import Client
from protocol.errors import InvalidRequestError
from protocol.frames import Frame
from protocol.messages import AttachTail, CloseSession, Credit, OpenSession, SamplingParams, SessionOpened, Step
from tests.support.waiting import eventually
from tests.support.whole_cluster import WholeCluster, greedy_ids, hop_ranges, packed_tiny, whole_cluster
from worker import connections

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
PROMPT = [5, 9, 30, 4, 77, 12]
ENDLESS: dict[str, Any] = {"eos_token_id": None}
SEEDED: dict[str, Any] = {"temperature": 0.9, "top_p": 0.95, "repetition_penalty": 1.2, "seed": 7}
N_TOKENS = 12


def record_frames(monkeypatch: pytest.MonkeyPatch) -> list[Frame]:
    """Every frame that comes to a worker, from whomever."""
    seen: list[Frame] = []
    decode = connections.decode_frames

    def decoded(data: Any) -> list[Frame]:
        frames = decode(data)
        seen.extend(Frame(frame.message, bytes(frame.payload)) for frame in frames)
        return frames

    monkeypatch.setattr(connections, "decode_frames", decoded)
    return seen


def assert_nothing_told(frames: list[Frame]) -> None:
    assert {type(frame.message) for frame in frames} == {
        OpenSession,
        AttachTail,
        Step,
        Credit,
        SessionOpened,
        CloseSession,
    }
    for frame in frames:
        match frame.message:
            case AttachTail() as message:
                assert message.sampling == SamplingParams(max_tokens=1)
                assert not frame.payload
            case Step() as message:
                assert message.dtype == "float32"
                assert not message.drafts
                assert frame.payload
            case message:
                assert not frame.payload


def assert_told_why_it_ended(frames: list[Frame]) -> None:
    """The open answer before is still being closed."""
    private = {frame.message.session_id for frame in frames if isinstance(frame.message, AttachTail)}
    closed = [frame.message for frame in frames if isinstance(frame.message, CloseSession)]
    reasons = {(one.reason, one.finish_reason) for one in closed if one.session_id in private}
    assert reasons == {("finished", "length")}


async def until_free(cluster: WholeCluster) -> None:
    engines = [member.worker.engine for member in cluster.members.values()]
    await eventually(lambda: all(engine.stats().n_sessions == 0 for engine in engines))


async def test_workers_are_told_no_token_and_no_sampling_and_the_answer_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed, whole = packed_tiny(tmp_path, "gemma3", **ENDLESS)
    async with whole_cluster(tmp_path) as cluster:
        await cluster.add_model("tiny", packed)
        await cluster.join("a", "0:2")
        await cluster.join("b", "2:4")
        await cluster.until_ready()
        async with cluster.client() as client:
            open_answer = await client.generate("tiny", PROMPT, max_tokens=N_TOKENS, **SEEDED)
            frames = record_frames(monkeypatch)
            found = await client.generate("tiny", PROMPT, max_tokens=N_TOKENS, private=True, temperature=0.0)
            seeded = await client.generate("tiny", PROMPT, max_tokens=N_TOKENS, private=True, **SEEDED)
            await until_free(cluster)
            monkeypatch.undo()
            assert list(found.token_ids) == greedy_ids(whole, PROMPT, N_TOKENS)
            assert seeded.token_ids == open_answer.token_ids
            assert (found.finish_reason, found.private_blocks) == ("length", 1)
            assert hop_ranges(found) == ["1:2", "2:3"]
            assert_nothing_told(frames)
            assert_told_why_it_ended(frames)
            with pytest.raises(InvalidRequestError, match=r"^2 private blocks .* has 4 .* at most 1"):
                await client.generate("tiny", PROMPT, private=True, private_blocks=2)


async def test_a_private_answer_outlives_its_workers_and_a_caller_that_leaves_frees_them(tmp_path: Path) -> None:
    packed, whole = packed_tiny(tmp_path, "llama", **ENDLESS)
    async with whole_cluster(tmp_path) as cluster:
        await cluster.add_model("tiny", packed)
        for name in ("one", "other"):
            await cluster.join(name, "0:4")
        await cluster.until_ready()
        async with cluster.client() as client:
            assert await with_failover(cluster, client) == greedy_ids(whole, PROMPT, 40)
            async with client.stream("tiny", PROMPT, max_tokens=40, private=True) as pieces:
                await anext(pieces)
            await eventually(lambda: still_running(cluster) == 0)


async def with_failover(cluster: WholeCluster, client: Client) -> list[int]:
    """A private answer whose only worker is gone after three tokens."""
    async with client.stream("tiny", PROMPT, max_tokens=40, temperature=0.0, private=True) as pieces:
        async for _ in pieces:
            if len(pieces.result.token_ids) == 3:
                serving = pieces.result.route[0].worker_id
                gone = next(m for m in cluster.members.values() if m.worker.worker_id == serving)
                await asyncio.shield(gone.vanish())
    assert pieces.result.failovers == 1
    return list(pieces.result.token_ids)


def still_running(cluster: WholeCluster) -> int:
    there = [m for m in cluster.members.values() if m.task is not None and not m.task.done()]
    return sum(member.worker.engine.stats().n_sessions for member in there)
