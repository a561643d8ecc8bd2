"""Sessions that a test opens over real connections, and how they are ended."""

from __future__ import annotations

from typing import Any

from protocol.messages import (
    SessionEnded,
    SessionOpened,
    Token,
)
from tests.support.ring import Ring, Wire
from tests.support.ring_generation import Generation

PROMPT = [5, 9, 30, 4, 77, 12]


async def refusal(wire: Wire, code: str) -> SessionEnded:
    ended: SessionEnded = await wire.receive((SessionEnded, Token))
    assert isinstance(ended, SessionEnded)
    assert ended.error.code == code, ended
    return ended


async def opened(ring: Ring, **changes: Any) -> Generation:
    generation = await Generation.prepared(ring, PROMPT, 40, **changes)
    await generation.open()
    await generation.head.receive(SessionOpened)
    return generation
