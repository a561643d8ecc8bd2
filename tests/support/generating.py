"""One generation on a scripted cluster, driven as `Client` drives it, with everything that its caller would see."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from client.deadline import Deadline
from client.decoding import TextStream
from client.generation import GenerationRequest, generated_pieces
from client.results import Generation, Progress, TokenPiece
from client.transport import connection_pool
from protocol.ids import ModelName, Revision
from protocol.messages import SamplingParams
from protocol.pinned_http import pinned_session
from tests.support.scripted_cluster import ScriptedCluster
from tests.support.tiny_tokenizer import ids_of, tiny_tokenizer

PROMPT = (5, 6)
TEXT = "Paris \N{EURO SIGN}\N{ROCKET} is it."
ANSWER = tuple(ids_of(TEXT))


@dataclass
class Run:
    """One generation, as its caller sees it."""

    progress: Progress
    pieces: list[TokenPiece] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    @property
    def texts(self) -> list[str]:
        return [piece.text for piece in self.pieces]

    @property
    def result(self) -> Generation:
        return self.progress.generation()


async def generated(
    cluster: ScriptedCluster,
    *,
    revision: Revision | None = None,
    stops: tuple[str, ...] = (),
    timeout_s: float = 30.0,
    on_open: Callable[[], Awaitable[None]] | None = None,
    sampling: SamplingParams | None = None,
    run: Run | None = None,
) -> Run:
    request = GenerationRequest(
        model=ModelName("tiny"),
        revision=revision or cluster.revision,
        vocab_size=270,
        prompt=PROMPT,
        sampling=sampling or SamplingParams(max_tokens=50),
        stops=stops,
    )
    run = run or Run(Progress(0.0))
    async with (
        pinned_session(cluster.url, cluster.api_key) as coordinator,
        connection_pool(coordinator.ca_pem) as pool,
    ):
        if on_open is not None:
            await on_open()
        now_s = asyncio.get_running_loop().time()
        run.progress = Progress(now_s, run.notices.append)
        pieces = generated_pieces(
            request,
            coordinator=coordinator,
            pool=pool,
            text=TextStream(tiny_tokenizer()),
            progress=run.progress,
            deadline=Deadline(at_s=now_s + timeout_s, timeout_s=timeout_s),
        )
        async for piece in pieces:
            run.pieces.append(piece)
    return run


def assert_whole(run: Run, cluster: ScriptedCluster, *, failovers: int) -> None:
    """Every token once and in order, to the text, and every attempt began with all that came before."""
    assert tuple(piece.token_id for piece in run.pieces) == ANSWER == run.result.token_ids
    assert "".join(run.texts) == TEXT == run.result.text
    assert (run.result.finish_reason, run.result.failovers) == ("length", failovers)
    asked = cluster.route_requests[-1]
    n_before = asked.n_prompt_tokens - len(PROMPT)
    assert cluster.prompt_ids == [*PROMPT, *ANSWER[:n_before]]
    assert cluster.latest.attached_prompt == bytes(cluster.latest.prompt_step.payload)  # type: ignore[union-attr]
    assert asked.max_tokens == cluster.sampling.max_tokens == 50 - n_before


class Notices(list[str]):
    """Notices that somebody waits for."""

    def __init__(self, on_notice: Callable[[str], object]) -> None:
        super().__init__()
        self._on_notice = on_notice

    def append(self, notice: str) -> None:
        super().append(notice)
        self._on_notice(notice)
