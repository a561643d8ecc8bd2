"""JSON that comes in pieces, as text: where a value ends, and which piece belongs to which key. Pure.

Nothing is parsed here: what a model wrote goes on as it wrote it, whether or not it is JSON in all its details. All
that is followed is what is needed to find the end: strings, escapes and brackets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

_SPACE = " \t\r\n"


class ValueText:
    """The text of one JSON value, found as it comes."""

    def __init__(self) -> None:
        self._first = ""
        self._depth = 0
        self._is_in_string = False
        self._is_escaped = False
        self.is_over = False

    def n_of(self, text: str) -> int:
        """How many characters of what comes next are the value's."""
        for number, character in enumerate(text):
            if not self._takes(character):
                return number
            if self.is_over:
                return number + 1
        return len(text)

    def _takes(self, character: str) -> bool:
        """Go on by a character; false if it comes after the value's end (of a number, or a word)."""
        if not self._first:
            self._first = character
        if self._is_in_string:
            self._follow_string(character)
        elif character == '"':
            self._is_in_string = True
        elif character in "{[":
            self._depth += 1
        elif self._first in "{[":
            if character in "}]":
                self._depth -= 1
                self.is_over = self._depth == 0
        elif character in ",}]" or character in _SPACE:
            self.is_over = True
            return False
        return True

    def _follow_string(self, character: str) -> None:
        if self._is_escaped:
            self._is_escaped = False
        elif character == "\\":
            self._is_escaped = True
        elif character == '"':
            self._is_in_string = False
            self.is_over = self._depth == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A piece of the value of one of an object's own keys."""

    key: str
    """As it stands in the text, with its quotes."""
    text: str
    is_last: bool


class ObjectText:
    """The keys and values of one JSON object, found as it comes."""

    def __init__(self) -> None:
        self._awaited = "{"
        self._key = ""
        self._value = ValueText()
        self.is_over = False
        self.is_broken = False
        """It isn't an object; whatever came before was."""

    def read(self, text: str) -> tuple[list[Part], int]:
        """The parts in what comes next, and how many of its characters were read: all, unless it is over."""
        parts: list[Part] = []
        position = 0
        while position < len(text) and not (self.is_over or self.is_broken):
            if self._awaited in ("key", "value"):
                position += self._read_value(text[position:], parts)
            else:
                position += self._read_mark(text[position])
        return parts, position

    def _read_mark(self, character: str) -> int:
        """Read what stands between keys and values; 0 if it is the beginning of one, or breaks the object."""
        if character in _SPACE:
            return 1
        match self._awaited, character:
            case ("{", "{"):
                self._awaited = "key or }"
            case ("key or }", '"'):
                self._await_value("key")
                return 0
            case (":", ":"):
                self._awaited = "value's first"
            case ("value's first", _) if character not in ",:}]":
                self._await_value("value")
                return 0
            case (", or }", ","):
                self._awaited = "key or }"
            case ("key or }" | ", or }", "}"):
                self.is_over = True
            case _:
                self.is_broken = True
                return 0
        return 1

    def _await_value(self, what: str) -> None:
        self._awaited, self._value = what, ValueText()
        if what == "key":
            self._key = ""

    def _read_value(self, text: str, parts: list[Part]) -> int:
        n_read = self._value.n_of(text)
        if self._awaited == "key":
            self._key += text[:n_read]
        elif n_read or self._value.is_over:
            parts.append(Part(key=self._key, text=text[:n_read], is_last=self._value.is_over))
        if self._value.is_over:
            self._awaited = ":" if self._awaited == "key" else ", or }"
        return n_read


class CallBegun:
    """What is known of a call that is being read."""

    def __init__(self) -> None:
        self.name = ""
        self.held = ""
        """Of the arguments: what can't be said yet."""
        self.is_held_whole = False
        self.has_argued = False
        self.is_sure = False
        """Whether its beginning was said."""
        self.object = ObjectText()
        self.value = ValueText()


def json_string(text: str) -> str | None:
    """What a JSON string says; None if it isn't one."""
    try:
        return msgspec.json.decode(text, type=str)
    except msgspec.DecodeError:
        return None


def json_object(text: str) -> dict[str, Any] | None:
    """The object that a text is; None if it isn't one that can be written again (no half of a surrogate pair)."""
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError):
        return None
