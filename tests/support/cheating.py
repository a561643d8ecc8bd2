"""Workers that compute something else than they should: hooks on the blocks of a real one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from random import Random
from typing import Any

import torch

from tests.support.changed_weights import change_weights_of
from tests.support.whole_cluster import Member
from worker.engine_core import EngineCore

Cheat = Callable[[torch.Tensor], torch.Tensor]
"""Of what a block gives (1, n_tokens, hidden): what it is to give instead."""


async def cheat(member: Member, block: int, how: Cheat) -> None:
    """Have one block of the worker, counted from its span's first, give something else from now on."""

    def hook(_module: Any, _args: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (how(output[0]), *output[1:])
        return how(output)

    def prepare(core: EngineCore) -> None:
        for stage, _ in core.spans.values():
            stage._model.model.layers[block].register_forward_hook(hook)

    await member.worker.engine._link.post(prepare)


async def change_weights(member: Member, block: int, noise: float) -> None:
    """Have one block's weights be a little other ones."""

    def prepare(core: EngineCore) -> None:
        generator = torch.Generator().manual_seed(1)

        def noisy(weight: torch.Tensor) -> torch.Tensor:
            scale = noise * weight.std() if weight.numel() > 1 else noise
            return weight + scale * torch.randn(weight.shape, generator=generator)

        for stage, _ in core.spans.values():
            change_weights_of(stage._model.model.layers[block], noisy)

    await member.worker.engine._link.post(prepare)


def garbage_on(share: float, seed: int) -> Cheat:
    """Numbers of the right size that mean nothing, on so many of the steps."""
    rng = Random(seed)

    def how(states: torch.Tensor) -> torch.Tensor:
        return torch.randn_like(states) * states.std() if rng.random() < share else states

    return how


async def round_weights(member: Member, n_bits: int) -> None:
    """Have the worker compute with weights of so many bits, whatever it says of its precision."""

    def rounded(weight: torch.Tensor) -> torch.Tensor:
        if weight.dim() != 2:
            return weight
        step = weight.abs().amax(dim=1, keepdim=True) / (2 ** (n_bits - 1) - 1)
        return (weight / step).round() * step

    def prepare(core: EngineCore) -> None:
        for stage, _ in core.spans.values():
            change_weights_of(stage._model.model.layers, rounded)

    await member.worker.engine._link.post(prepare)


def held_up(is_over: threading.Event, at_most_s: float = 60.0) -> Cheat:
    """Right numbers, each step of which comes only when that is set, or after so long."""

    def how(states: torch.Tensor) -> torch.Tensor:
        is_over.wait(at_most_s)
        return states

    return how
