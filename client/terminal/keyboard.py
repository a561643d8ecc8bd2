"""The keyboard of a chat: what is typed while an answer comes isn't shown in the middle of it, and waits."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

if sys.platform != "win32":
    import termios

_INPUT_FLAGS, _LOCAL_FLAGS = 0, 3
"""Where `termios.tcgetattr` has them."""


@contextmanager
def unechoed() -> Iterator[None]:
    """Have the terminal at standard input show nothing of what is typed, and keep it as it was typed.

    Else it would take Ctrl-D, Backspace and Enter for its own. Ctrl-C is a signal as ever. For a whole chat, so
    that nothing is lost between two prompts.
    """
    if sys.platform != "win32":
        descriptor = sys.stdin.fileno()
        before = termios.tcgetattr(descriptor)
        silent = termios.tcgetattr(descriptor)
        silent[_INPUT_FLAGS] &= ~termios.ICRNL
        silent[_LOCAL_FLAGS] &= ~(termios.ECHO | termios.ICANON)
        termios.tcsetattr(descriptor, termios.TCSANOW, silent)
    try:
        yield
    finally:
        if sys.platform != "win32":
            termios.tcsetattr(descriptor, termios.TCSANOW, before)
