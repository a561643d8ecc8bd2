"""The event loop that the long-running programs use: uvloop where there is one, else asyncio's own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


def event_loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """For `asyncio.Runner`. Uvloop wakes sooner for what other threads bring (docs/decisions/0006)."""
    try:
        import uvloop  # noqa: PLC0415 - not installed on Windows
    except ImportError:
        return None
    return uvloop.new_event_loop
