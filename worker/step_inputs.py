"""What comes from a neighbour, as the engine takes it: bytes become tensors, prompts become chunks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from protocol.messages import Step
from protocol.tensors import check_states, tensor_from_bytes
from worker.steps import StepInput
from worker.wire import unpacked

MAX_INLINE_BYTES = 2**20
"""Payloads over this become tensors in a thread: checking 1 MB for NaN takes a fraction of a millisecond."""

_ITEM_BYTES = {"int32": 4, "float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True)
class ArrivedStep:
    """A step and its payload, as they came."""

    step: Step
    payload: bytes | memoryview


async def payload_of(arrived: ArrivedStep, *, is_head: bool) -> torch.Tensor:
    """(n_tokens,) ids or (n_tokens, hidden) states; the engine checks the latter's width.

    Raises:
        ProtocolError: it isn't what the step says.
    """
    if len(arrived.payload) > MAX_INLINE_BYTES:
        return await asyncio.to_thread(payload_now, arrived, is_head=is_head)
    return payload_now(arrived, is_head=is_head)


def payload_now(arrived: ArrivedStep, *, is_head: bool) -> torch.Tensor:
    """The same, at once."""
    step, payload = arrived.step, arrived.payload
    if step.dtype == "int32" or is_head:
        return tensor_from_bytes(payload, "int32", (step.n_tokens,))
    if step.group:
        states = unpacked(payload, step.n_tokens, step.group, getattr(torch, step.dtype))
        check_states(states)
        return states
    width = len(payload) // (step.n_tokens * _ITEM_BYTES[step.dtype])
    return tensor_from_bytes(payload, step.dtype, (step.n_tokens, width), are_states=True)


def pieces_of(step: Step, payload: torch.Tensor, pieces: Iterable[range]) -> Iterator[StepInput]:
    """The step in pieces of these positions. One with guesses comes in one piece."""
    for positions in pieces:
        first = positions.start - step.position
        yield StepInput(
            session_id=step.session_id,
            position=positions.start,
            n_tokens=len(positions),
            payload=payload[first : first + len(positions)],
            drafts=step.drafts,
        )
