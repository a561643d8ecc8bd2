"""Saying what a start waits for, where that takes long: else nobody knows whether it hangs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

log = structlog.get_logger(__name__)

SLOW_S = 2.0


@asynccontextmanager
async def told_if_slow(what: str) -> AsyncIterator[None]:
    """Log what is waited for, once, if what is inside takes longer than that."""
    loop = asyncio.get_running_loop()
    told = loop.call_later(SLOW_S, lambda: log.warning("start_waits", waits_for=what, for_s=SLOW_S))
    try:
        yield
    finally:
        told.cancel()
