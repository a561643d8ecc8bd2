"""The answers to a batch of prompts, each a generation of its own, so many of them at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from transformers import StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from client.api import Client
from protocol.rest import ModelInfo

Watch: TypeAlias = Callable[[list[int]], bool]
"""Told the answer after each of its tokens; whether that was its last. Blocks: it is called in a thread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One prompt and how it is to be answered."""

    prompt: list[int]
    options: Mapping[str, Any]
    watch: Watch | None = None


def watch_of(row: torch.Tensor, *, streamer: BaseStreamer | None, criteria: StoppingCriteriaList) -> Watch | None:
    """What is done at each token of the answer to `row` (tokens), padding included as the criteria expect it."""
    if streamer is None and not criteria:
        return None

    show: Any = streamer

    def watch(answer: list[int]) -> bool:
        if show is not None:
            show.put(torch.tensor(answer[-1:]))
        if not criteria:
            return False
        so_far: Any = torch.cat([row, torch.tensor(answer, dtype=row.dtype)])[None]  # (1, tokens)
        return bool(criteria(so_far, None)[0])

    return watch


async def answers_to(
    client: Client, model: ModelInfo, rows: Sequence[Row], *, max_sessions: int
) -> list[list[int]]:
    """The token ids of all answers. If one fails, the others are ended.

    Raises:
        BrigadeError: as `Client.stream`.
    """
    turns, watching = asyncio.Semaphore(max_sessions), asyncio.Lock()

    async def answer(row: Row) -> list[int]:
        token_ids: list[int] = []
        async with turns, client.stream(model, row.prompt, **row.options) as pieces:
            async for piece in pieces:
                token_ids.append(piece.token_id)
                if row.watch is None:
                    continue
                async with watching:  # criteria and streamers are one caller's, who knows of no threads
                    is_over = await asyncio.to_thread(row.watch, token_ids)
                if is_over:
                    break
        return token_ids

    try:
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(answer(row), name=f"row-{number}") for number, row in enumerate(rows)]
    except ExceptionGroup as group:
        raise group.exceptions[0] from group
    return [task.result() for task in running]
