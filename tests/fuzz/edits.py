"""Alter an input as somebody would who knows its format: other numbers, lengths, values, pieces of other inputs.

Random bytes end at the first check of a magic. These edits keep most of a well-formed input, so that what lies
behind the first check is reached; both engines use them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.fuzz.target import MAX_INPUT_BYTES

_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")
_TEXT = re.compile(rb'"(?:[^"\\]|\\.)*"')
_NUMBERS = (
    b"0", b"-1", b"1", b"2", b"255", b"65536", b"1000000", b"2147483648", b"4294967295", b"9007199254740993",
    b"18446744073709551615", b"340282366920938463463374607431768211456", b"1e999", b"-0.0", b"0.1", b"1e-400",
    b"9" * 400,
)  # fmt: skip
_VALUES = (
    b"null", b"true", b"[]", b"{}", b'""', b'"\\ud800"', b'"\\u0000"', b'"a"', b"[null]", b'{"a":1}', b"[[[[]]]]",
    b"[" * 2000, b'{"a":' * 500, b'"' + b"x" * 300 + b'"', b"NaN", b"Infinity",
)  # fmt: skip
_PIECES = (
    b"\x00", b"\xff", b"\xed\xa0\x80", b"\xc3\x28", b"../", b"\r\n", b"%00", b"\xef\xbb\xbf", b"\xe2\x80\xae", b".",
    b":", b"=", b"[::1%25x]", b"{{ ", b"{% for i in range(9999) %}", b"\x92" * 50, b"\xdf\xff\xff\xff\xff",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Edit:
    """One change. What `at`, `size` and `value` mean depends on the kind; each is taken modulo what there is."""

    kind: int
    at: int
    size: int
    value: int


def edited(data: bytes, edits: Sequence[Edit], others: Sequence[bytes]) -> bytes:
    """The input after all edits, one after the other. `others` are inputs that pieces may be taken from."""
    for edit in edits:
        data = _KINDS[edit.kind % len(_KINDS)](data, edit, others)[:MAX_INPUT_BYTES]
    return data


def _flip(data: bytes, edit: Edit, _: Sequence[bytes]) -> bytes:
    if not data:
        return data
    at = edit.at % len(data)
    return data[:at] + bytes([data[at] ^ (1 << edit.value % 8)]) + data[at + 1 :]


def _cut(data: bytes, edit: Edit, _: Sequence[bytes]) -> bytes:
    at = edit.at % (len(data) + 1)
    return data[:at] + data[at + edit.size % 64 :]


def _end(data: bytes, edit: Edit, _: Sequence[bytes]) -> bytes:
    return data[: edit.at % (len(data) + 1)]


def _repeat(data: bytes, edit: Edit, _: Sequence[bytes]) -> bytes:
    at = edit.at % (len(data) + 1)
    return data[: at + edit.size % 64] + data[at:]


def _insert(data: bytes, edit: Edit, _: Sequence[bytes]) -> bytes:
    at = edit.at % (len(data) + 1)
    return data[:at] + _PIECES[edit.value % len(_PIECES)] + data[at:]


def _integer(data: bytes, edit: Edit, _: Sequence[bytes]) -> bytes:
    """A binary integer of 1 to 8 bytes becomes one at the edge of what it can be."""
    width, order = (1, 2, 4, 8)[edit.size % 4], ("little", "big")[edit.value % 2]
    most = 2 ** (8 * width) - 1
    value = (0, 1, most, most // 2, most // 2 + 1, 2**20 & most, 2**31 & most, 3)[edit.value // 2 % 8]
    at = edit.at % (len(data) + 1)
    return data[:at] + value.to_bytes(width, "little" if order == "little" else "big") + data[at + width :]


def _number(data: bytes, edit: Edit, _: Sequence[bytes]) -> bytes:
    return _replaced(data, _NUMBER, edit.at, _NUMBERS[edit.value % len(_NUMBERS)])


def _value(data: bytes, edit: Edit, _: Sequence[bytes]) -> bytes:
    return _replaced(data, (_TEXT, _NUMBER)[edit.size % 2], edit.at, _VALUES[edit.value % len(_VALUES)])


def _splice(data: bytes, edit: Edit, others: Sequence[bytes]) -> bytes:
    other = others[edit.value % len(others)]
    start = edit.size % (len(other) + 1)
    return data[: edit.at % (len(data) + 1)] + other[start:]


def _replaced(data: bytes, pattern: re.Pattern[bytes], which: int, by: bytes) -> bytes:
    places = [match.span() for match in pattern.finditer(data)]
    if not places:
        return data
    start, end = places[which % len(places)]
    return data[:start] + by + data[end:]


_KINDS: tuple[Callable[[bytes, Edit, Sequence[bytes]], bytes], ...] = (
    _number, _value, _integer, _flip, _cut, _repeat, _insert, _splice, _end,
)  # fmt: skip
