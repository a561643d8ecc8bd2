from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from client.terminal.input_lines import InputLines
from protocol.errors import InvalidRequestError

WITHIN_S = 20.0


@contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    try:
        yield reading, writing
    finally:
        os.close(reading)
        os.close(writing)


async def lines_of(path: Path) -> list[str]:
    with path.open("rb") as file:
        lines, found = InputLines(file.fileno()), []
        while (line := await lines.line()) is not None:
            found.append(line)
        return found


async def test_lines_of_a_file_with_and_without_an_end(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    for data, lines in ((b"", []), (b"a\r\n\nb", ["a", "", "b"]), ("\N{ROCKET}\n".encode(), ["\N{ROCKET}"])):
        path.write_bytes(data)
        assert await lines_of(path) == lines
    path.write_bytes(b"a\nb\xff\n")
    with pytest.raises(InvalidRequestError, match="line 2 of standard input is not UTF-8 at byte 1"):
        await lines_of(path)


async def test_a_line_comes_once_it_is_whole_and_a_wait_for_it_can_be_given_up() -> None:
    with pipe() as (reading, writing):
        lines = InputLines(reading)
        os.write(writing, b"on")
        async with asyncio.timeout(WITHIN_S), asyncio.TaskGroup() as group:
            given_up = group.create_task(lines.line())
            await asyncio.sleep(0)
            given_up.cancel()
        os.write(writing, b"e\ntwo\nth")
        async with asyncio.timeout(WITHIN_S):
            assert await lines.line() == "one"
            assert await lines.line() == "two"
