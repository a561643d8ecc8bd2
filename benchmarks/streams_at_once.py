"""Several generations at once, and how fast all of them come while all of them run."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from benchmarks.arrangement import MODEL
from client.api import Client


async def stream_times(client: Client, prompt: Sequence[int], n_tokens: int, **options: object) -> list[float]:
    """When each token of one generation came, on the loop's clock; greedy, no early end."""
    now_s = asyncio.get_running_loop().time
    stream = client.stream(MODEL, prompt, max_tokens=n_tokens, temperature=0.0, ignore_eos=True, **options)
    async with stream:
        return [now_s() async for _ in stream]


async def total_tokens_per_s(
    client: Client, prompts: Sequence[Sequence[int]], n_tokens: int, **options: object
) -> float:
    """Of all streams together, from when the last has begun until the first is over."""
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(stream_times(client, prompt, n_tokens, **options)) for prompt in prompts]
    return rate_while_all_run([task.result() for task in running])


def rate_while_all_run(came_at_s: Sequence[Sequence[float]]) -> float:
    """Tokens per second between the latest first token and the earliest last one.

    Raises:
        ValueError: one was over before another began: give them more tokens.
    """
    start_s = max(times[0] for times in came_at_s)
    end_s = min(times[-1] for times in came_at_s)
    if end_s <= start_s:
        raise ValueError("the streams didn't run at the same time: measure with more tokens")
    return sum(start_s < at_s <= end_s for times in came_at_s for at_s in times) / (end_s - start_s)
