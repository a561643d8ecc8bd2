from __future__ import annotations

import os
import pty
import sys

import pytest
from rich.table import Table

from protocol.answer_console import answer_console

LONG = 100 * "ab-"


def table_of_one_cell() -> Table:
    table = Table(box=None, show_header=False)
    table.add_column("head", overflow="fold")
    table.add_row(LONG)
    return table


def test_lines_of_what_goes_into_a_file_are_whole(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    answer_console().print(table_of_one_cell())
    assert LONG in capsys.readouterr().out


def test_a_terminal_gets_lines_as_wide_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm")
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb") as screen, os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        answer_console().print(table_of_one_cell())
        terminal.flush()
        lines = screen.read1(10_000).decode().splitlines()
    assert len(lines) > 2
    assert max(map(len, lines)) <= 60
