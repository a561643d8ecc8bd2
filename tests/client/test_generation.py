from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from client.decoding import TextStream
from client.generation import Deadline, GenerationRequest, generated_pieces
from client.results import Progress
from client.transport import connection_pool
from protocol.errors import ConflictError, DeadlineExceededError
from protocol.ids import ModelName, Revision
from protocol.messages import SamplingParams
from protocol.pinned_http import pinned_session
from tests.support.scripted_cluster import Script, ScriptedCluster, scripted_cluster
from tests.support.tiny_tokenizer import ids_of, tiny_tokenizer


async def generated(
    cluster: ScriptedCluster,
    *,
    revision: Revision | None = None,
    stops: tuple[str, ...] = (),
    timeout_s: float = 20.0,
) -> tuple[list[str], Progress]:
    request = GenerationRequest(
        model=ModelName("tiny"),
        revision=revision or cluster.revision,
        vocab_size=270,
        prompt=(5, 6),
        sampling=SamplingParams(max_tokens=50),
        stops=stops,
    )
    now_s = asyncio.get_running_loop().time()
    progress = Progress(now_s)
    async with (
        pinned_session(cluster.url, cluster.api_key) as coordinator,
        connection_pool(coordinator.ca_pem) as pool,
    ):
        pieces = generated_pieces(
            request,
            coordinator=coordinator,
            pool=pool,
            text=TextStream(tiny_tokenizer()),
            progress=progress,
            deadline=Deadline(at_s=now_s + timeout_s, timeout_s=timeout_s),
        )
        return [piece.text async for piece in pieces], progress


async def test_a_model_replaced_meanwhile_is_a_conflict(tmp_path: Path) -> None:
    async with scripted_cluster(tmp_path) as cluster:
        with pytest.raises(ConflictError, match="replaced"):
            await generated(cluster, revision=Revision("9" * 64))
        assert cluster.latest.opening is None


async def test_a_deadline_that_is_over_stops_before_the_route(tmp_path: Path) -> None:
    async with scripted_cluster(tmp_path) as cluster:
        with pytest.raises(DeadlineExceededError):
            await generated(cluster, timeout_s=0.0)


async def test_a_stop_string_in_the_last_token_is_a_stop_and_nobody_is_told(tmp_path: Path) -> None:
    async with scripted_cluster(tmp_path) as cluster:
        cluster.script = Script(answer=tuple(ids_of("ab!")), finish="length")
        texts, progress = await generated(cluster, stops=("!",))
        assert ("".join(texts), progress.finish_reason) == ("ab", "stop")
        assert cluster.latest.closed == {}


async def test_held_back_text_comes_with_the_last_token(tmp_path: Path) -> None:
    async with scripted_cluster(tmp_path) as cluster:
        cluster.script = Script(answer=(*ids_of("aX"), ids_of("\N{EURO SIGN}")[0]), finish="length")
        texts, progress = await generated(cluster, stops=("XY",))
        assert texts == ["a", "", "X\ufffd"]
        assert progress.generation().text == "aX\ufffd"
