"""Where commands print what people asked for: as wide as the terminal; into a file or a pipe, lines stay whole."""

from __future__ import annotations

import sys

from rich.console import Console

_NEVER_BROKEN = 100_000
"""Wider than any line: who searches the output, or takes an id out of it, mustn't find it cut in two."""


def answer_console() -> Console:
    """Standard output."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else _NEVER_BROKEN)
