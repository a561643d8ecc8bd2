"""What tests wait for that has no event of its own: asked anew until it is so."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

DEADLINE_S = 30.0


async def eventually(question: Callable[[], Any], deadline_s: float = DEADLINE_S) -> Any:
    """What `question` answers, once that is true; asked anew until the deadline."""
    until = time.monotonic() + deadline_s
    while not (answer := question()):
        assert time.monotonic() < until, "it didn't happen"
        await asyncio.sleep(0.01)
    return answer


async def eventually_answered(question: Callable[[], Awaitable[Any]], deadline_s: float = DEADLINE_S) -> Any:
    """As `eventually`, of a question that waits itself."""
    until = time.monotonic() + deadline_s
    while not (answer := await question()):
        assert time.monotonic() < until, "it didn't happen"
        await asyncio.sleep(0.01)
    return answer
