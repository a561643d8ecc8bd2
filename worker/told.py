"""What a worker tells people, line by line on standard output."""

from __future__ import annotations

from contextlib import suppress


def say(line: str) -> None:
    """A line for people. What came from elsewhere can't move a terminal's cursor."""
    with suppress(BrokenPipeError):  # nobody reads it any more: no reason to stop serving
        print(printable(line), flush=True)  # noqa: T201 - what it is for


def printable(text: str) -> str:
    """The text with a space for each character that a terminal would act on."""
    return "".join(character if character.isprintable() else " " for character in text)
