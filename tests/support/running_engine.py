"""An engine on the CPU, sessions of a tiny model on it, and what they say."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from protocol.ids import SessionId
from protocol.messages import SamplingParams
from tests.support.tiny_checkpoint import CPU, WHOLE, TinyCheckpoint
from worker.engine import Engine
from worker.steps import LoadedSpan, SessionSpec, StepInput, StepOutput

GREEDY = SamplingParams(max_tokens=100)

KV_PER_POSITION = 4 * 2 * (8 + 8) * 4

Checkpoints = Callable[[str], TinyCheckpoint]


@pytest.fixture
def llama(checkpoint: Checkpoints) -> TinyCheckpoint:
    return checkpoint("llama")


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    async with Engine(device=CPU, kv_budget_bytes=10_000 * KV_PER_POSITION, n_threads=1) as running:
        yield running


def spec(loaded: LoadedSpan, name: str = "s", **changes: Any) -> SessionSpec:
    base = SessionSpec(
        session_id=SessionId(name), span=loaded.key, blocks=loaded.key.blocks, n_positions=40, sampling=GREEDY
    )
    return replace(base, **changes)


def tokens(position: int, *ids: int, name: str = "s", wants_sample: bool = False) -> StepInput:
    payload = torch.tensor(ids, dtype=torch.int32)
    return StepInput(
        session_id=SessionId(name), position=position, n_tokens=len(ids), payload=payload, wants_sample=wants_sample
    )


async def opened(engine: Engine, llama: TinyCheckpoint, **changes: Any) -> LoadedSpan:
    loaded = await engine.load(llama.request(WHOLE))
    await engine.open_session(spec(loaded, **changes), deadline_s=5)
    return loaded


async def generated(engine: Engine, name: str, prompt: list[int], n_tokens: int) -> list[int]:
    """Prompt in chunks of up to 4, then decode."""
    output: StepOutput | None = None
    for start in range(0, len(prompt), 4):
        chunk = prompt[start : start + 4]
        output = await engine.run(tokens(start, *chunk, name=name, wants_sample=start + len(chunk) == len(prompt)))
    assert output is not None
    assert output.tokens
    found = [output.tokens[0].token_id]
    while len(found) < n_tokens:
        output = await engine.run(tokens(len(prompt) + len(found) - 1, found[-1], name=name, wants_sample=True))
        assert output.tokens
        found.append(output.tokens[0].token_id)
    return found
