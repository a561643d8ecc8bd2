"""Every command of ours that a page names is one that the programs have, options included."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.command_lines import APPS, TREES, commands_in, wrong_with

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for pattern in ("README.md", "CONTRIBUTING.md", "docs/**/*.md", "examples/*.md")
    for path in ROOT.glob(pattern)
)
_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?:^ {4,}\S.*\n)+", re.MULTILINE)
_COLUMNS = re.compile(r"\S {2,}[^#\s]")
"""What programs print as a table, and drawings: no line of a shell."""
_SPAN = re.compile(r"`([^`\n]+)`")


def shell_lines(page: str) -> list[str]:
    """Lines of blocks of code that a shell could be given, those that go on put together."""
    blocks = [found[3] for found in _FENCE.finditer(page) if found[2] in ("sh", "")]
    blocks += _INDENTED.findall(_FENCE.sub("", page))
    lines = (line for block in blocks for line in block.replace("\\\n", " ").splitlines())
    return [line for line in lines if not _COLUMNS.search(line)]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_are_ones_that_the_programs_have(page: Path) -> None:
    text = page.read_text()
    whole = [words for line in shell_lines(text) for words in commands_in(line) if is_command(words)]
    named = [words for span in _SPAN.findall(text) for words in commands_in(span) if is_command(words)]
    wrong = {" ".join(words): wrong_with(words, is_whole=True) for words in whole}
    wrong |= {" ".join(words): wrong_with(words, is_whole=False) for words in named}
    assert {line: why for line, why in wrong.items() if why} == {}


def is_command(words: list[str]) -> bool:
    """Whether it is meant as one, not as a program's name alone or what somebody types half of."""
    is_half = any("<Tab>" in word for word in words)
    return len(words) > 1 and not is_half and re.fullmatch(r"[a-z-]+", words[1].lstrip("-")) is not None


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("coord serv", "no command"),
        ("coord serve --listn 0.0.0.0:7400", "no option --listn"),
        ("sudo -u brigade coord key create", "without name"),
        ("BRIGADE_URL=https://host coord key revoke a b", "too much"),
        ("client generate x --max-tokens", "argument"),
    ],
)
def test_a_lie_is_found(line: str, why: str) -> None:
    (words,) = commands_in(line)
    assert why in wrong_with(words, is_whole=True)


def test_the_programs_are_all_there() -> None:
    assert set(TREES) == set(APPS) == {"coord", "worker", "client"}
