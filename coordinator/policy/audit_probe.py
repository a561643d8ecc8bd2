"""What an audit sends through blocks, made from a seed, and what is kept of what comes out: projections. Pure.

The same numbers come out on every machine, torch or not. Hidden states are the bytes of SHAKE-256(label, position,
seed) read as signed integers, each divided by 512: exact in every precision that workers compute in, and small
beside what a block adds to them. Token ids are 8 bytes of it each, modulo the vocabulary.

A projection of a row of n values is 32 sums: value i goes into the sum that the low 5 bits of byte i of
SHAKE-256(label, seed) name, with a minus if its highest bit is set (a count sketch). Lengths and differences of
rows keep their size in it, on the average, and who doesn't know the seed can't make two rows that look alike.
"""

from __future__ import annotations

import array
import hashlib
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from protocol.errors import ProtocolError
from protocol.ids import BlockRange
from protocol.messages import Step

N_SUMS = 32
STEPS = (6, 6, 6, *[1] * 6)
"""Positions of the steps, in order: pieces of a prompt, then single tokens, whose caches build on all before."""
N_POSITIONS = sum(STEPS)
_DIVISOR = 512.0
_FLOATS = tuple(struct.pack("<f", ((byte ^ 128) - 128) / _DIVISOR) for byte in range(256))
"""What each byte of a hidden state stands for, as a little-endian float32."""
_SCALE_BYTES = 4
_ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

Projection = tuple[tuple[float, ...], ...]
"""`N_SUMS` numbers for each position."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What goes through which blocks."""

    seed: str
    blocks: BlockRange
    hidden_size: int
    vocab_size: int
    is_whole: bool = False
    """Whether all positions go in one step: an encoder's, which has no caches."""

    @property
    def steps(self) -> tuple[int, ...]:
        """Positions of the steps, in order."""
        return (N_POSITIONS,) if self.is_whole else STEPS

    @property
    def takes_tokens(self) -> bool:
        """Whether the blocks are the first, which are given token ids."""
        return self.blocks.start == 0

    def token_ids(self, position: int, n_tokens: int) -> list[int]:
        """Token ids of `n_tokens` positions."""
        data = _stream(f"token {position}", self.seed, 8 * n_tokens)
        return [number % self.vocab_size for (number,) in struct.iter_unpack("<Q", data)]

    def states(self, position: int, n_tokens: int) -> bytes:
        """Hidden states (n_tokens, hidden_size) of the positions, float32, little-endian."""
        return b"".join(map(_FLOATS.__getitem__, self.state_codes(position, n_tokens)))

    def state_codes(self, position: int, n_tokens: int) -> bytes:
        """Likewise 512 times the values, as signed bytes."""
        at = range(position, position + n_tokens)
        return b"".join(_stream(f"state {each}", self.seed, self.hidden_size) for each in at)


def projected(seed: str, rows: Sequence[Sequence[float]]) -> Projection:
    """The projections of rows of equal length."""
    signs = projection_signs(seed, len(rows[0])) if rows else b""
    found = []
    for row in rows:
        sums = [0.0] * N_SUMS
        for value, sign in zip(row, signs, strict=True):
            sums[sign & N_SUMS - 1] += -value if sign & 128 else value
        found.append(tuple(sums))
    return tuple(found)


def projection_signs(seed: str, n_values: int) -> bytes:
    """For each value of a row, the sum that it goes into (the low 5 bits) and its sign (the highest: a minus)."""
    return _stream("projection", seed, n_values)


def rows_of(step: Step, payload: bytes | memoryview, hidden_size: int) -> list[Sequence[float]]:
    """The hidden states that a worker sent, as numbers.

    Raises:
        ProtocolError: the payload isn't so many rows of that size.
    """
    data = bytes(payload)
    n_values = step.n_tokens * hidden_size
    if step.group:
        values = _unpacked(data, n_values, step.group)
    elif step.dtype == "int32" or len(data) != n_values * _ITEM_BYTES[step.dtype]:
        raise _wrong(step, data, hidden_size)
    else:
        values = _numbers(step.dtype, data)
    return [values[start : start + hidden_size] for start in range(0, n_values, hidden_size)]


def _numbers(dtype: str, data: bytes) -> Sequence[float]:
    match dtype:
        case "float32":
            return _little_endian(array.array("f", data))
        case "bfloat16":  # the upper half of a float32
            wide = bytearray(2 * len(data))
            wide[2::4], wide[3::4] = data[0::2], data[1::2]
            return _little_endian(array.array("f", bytes(wide)))
        case _:
            return struct.unpack(f"<{len(data) // 2}e", data)


def _unpacked(data: bytes, n_values: int, group: int) -> Sequence[float]:
    """As `worker.wire` packs them: all codes, then a scale (float32) for each group."""
    n_groups = n_values // group
    if len(data) != n_groups * (group + _SCALE_BYTES) or n_values % group:
        raise ProtocolError(f"{len(data)} bytes for {n_values} values of int8 in groups of {group}")
    codes = memoryview(data)[:n_values].cast("b")
    scales = _little_endian(array.array("f", data[n_values:]))
    return [code * scales[i // group] for i, code in enumerate(codes)]


def _wrong(step: Step, data: bytes, hidden_size: int) -> ProtocolError:
    return ProtocolError(f"{len(data)} bytes of {step.dtype} for {step.n_tokens} rows of {hidden_size}")


def _stream(label: str, seed: str, n_bytes: int) -> bytes:
    return hashlib.shake_256(f"brigade audit {label} {seed}".encode()).digest(n_bytes)


def _little_endian(values: array.array[float]) -> array.array[float]:
    if sys.byteorder == "big":
        values.byteswap()
    return values
