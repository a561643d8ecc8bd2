from __future__ import annotations

import pytest

from client.terminal.slash_commands import Commanded, Said, parsed_line
from protocol.errors import InvalidRequestError


@pytest.mark.parametrize(
    ("line", "meaning"),
    [
        (" \n", None),
        (" two\nlines ", Said(text=" two\nlines ")),
        ("//etc/passwd?", Said(text="/etc/passwd?")),
        ("a /quit", Said(text="a /quit")),
        (" /quit ", Commanded(name="quit", argument="")),
        ("/system\nBe brief.\nBe kind.", Commanded(name="system", argument="Be brief.\nBe kind.")),
        ("/set top_p  0.5", Commanded(name="set", argument="top_p  0.5")),
        ("/save", Commanded(name="save", argument="")),
    ],
)
def test_what_a_line_means(line: str, meaning: object) -> None:
    assert parsed_line(line) == meaning


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/", "no command /:"),
        ("/etc/passwd?", "with two"),
        ("/load", "/load FILE"),
        ("/undo 3", "takes nothing"),
        ("/system caf\udce9", "not valid Unicode at character 11"),
    ],
)
def test_a_command_that_is_none_says_why(line: str, words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        parsed_line(line)
