"""The event loop that the long-running programs use: uvloop where there is one, else asyncio's own."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import structlog

log = structlog.get_logger(__name__)


_CLOSED = "the handler is closed"
"""In uvloop's words, where it doesn't say of which transport any more."""


def event_loop() -> asyncio.AbstractEventLoop:
    """For `asyncio.Runner`. Uvloop wakes sooner for what other threads bring (docs/decisions/0006)."""
    try:
        import uvloop  # noqa: PLC0415 - not installed on Windows
    except ImportError:
        loop = asyncio.new_event_loop()
    else:
        loop = uvloop.new_event_loop()
    loop.set_exception_handler(_unhandled)
    return loop


@contextmanager
def signals_handled(act: Callable[[], None], *numbers: signal.Signals) -> Iterator[None]:
    """Have the running loop call `act` at each of these signals.

    Windows' own loop takes no signals: there Python does, which tells the loop.
    """
    loop = asyncio.get_running_loop()
    previous: dict[signal.Signals, Any] = {}
    try:
        for number in numbers:
            try:
                loop.add_signal_handler(number, act)
            except NotImplementedError:
                previous[number] = signal.signal(number, lambda *_: loop.call_soon_threadsafe(act))
        yield
    finally:
        for number in numbers:
            if number in previous:
                signal.signal(number, previous[number])
            elif not previous:
                loop.remove_signal_handler(number)


def _unhandled(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What the loop would print with its traceback is a line of the log like all others.

    A connection that we closed while something was still arriving may end a second time: uvloop then tries to write
    to the closed transport and calls that fatal (https://github.com/MagicStack/uvloop/issues/506).
    """
    exception, transport = context.get("exception"), context.get("transport")
    what = str(context.get("message") or "an error that nobody handled")
    is_over = _CLOSED in str(exception) if transport is None else transport.is_closing()
    if isinstance(exception, (OSError, RuntimeError)) and is_over:
        log.debug("connection_ended_twice", what=what, error=str(exception))
        return
    log.error("loop_error", what=what, exc_info=exception)
