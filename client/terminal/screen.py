"""What a chat shows: answers as they come, and everything about them. Model text can do nothing to the terminal.

On a terminal all of it is seen in one place. Elsewhere answers alone go to standard output, the rest to standard
error, so that a script has what it asked for.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from io import TextIOWrapper

from rich.console import Console
from rich.table import Table
from rich.text import Text

from client.command import write, write_now
from client.output import done_line, printable
from client.results import Generation

_WIDTH = 120
"""Of tables where there is no terminal."""


class Screen:
    """Where a chat writes; `is_json`: each answer as one line of JSON."""

    def __init__(self, *, is_terminal: bool, is_json: bool = False) -> None:
        if isinstance(sys.stdout, TextIOWrapper):  # all as answers are written, whatever the terminal says
            sys.stdout.reconfigure(encoding="utf-8", errors="replace")
        self._is_json = is_json
        self._is_text_seen = sys.stdout.isatty()
        self._is_together = self._is_text_seen and (is_terminal or sys.stderr.isatty())
        width = None if self._is_together else _WIDTH
        self._console = Console(stderr=not is_terminal, width=width, highlight=False, markup=False, emoji=False)
        self._is_within_line = False

    async def text(self, text: str) -> None:
        """More of an answer."""
        if self._is_json or not text:
            return
        self._is_within_line = not text.endswith("\n")
        await write(printable(text) if self._is_text_seen else text)

    def end_answer(self, result: Generation) -> None:
        """The answer is over, or was stopped. Waits for nothing, so that it can be said at any time."""
        if self._is_json:
            write_now(done_line(result) + "\n")
        elif self._is_within_line or not result.text:
            write_now("\n")
        self._is_within_line = False

    def notice(self, text: str) -> None:
        """One line about what happens just now, also in the middle of an answer."""
        self._line(text, "yellow")

    def aside(self, text: str) -> None:
        """One line that nobody has to read."""
        self._line(text, "dim")

    def error(self, text: str) -> None:
        """One line about what couldn't be done."""
        self._line(f"error: {text}", "red")

    def quotation(self, title: str, text: str) -> None:
        """What was said earlier, which may have many lines."""
        self._console.print(Text(f"{title}: ", style="bold") + Text(printable(text)), soft_wrap=True)

    def lines(self, lines: Sequence[str]) -> None:
        """Lines that are laid out already."""
        for line in lines:
            self._console.print(Text(printable(line)), soft_wrap=True)

    def rows(self, rows: Sequence[tuple[str, str]]) -> None:
        """Names, and what there is to each of them."""
        table = Table.grid(padding=(0, 2))
        for name, text in rows:
            table.add_row(Text(printable(name), style="bold", no_wrap=True), Text(printable(text)))
        self._console.print(table)

    def _line(self, text: str, style: str) -> None:
        if self._is_within_line and self._is_together:
            write_now("\n")
            self._is_within_line = False
        self._console.print(Text(printable(" ".join(text.split())), style=style), soft_wrap=True)
