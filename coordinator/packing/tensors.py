"""What packing knows of a tensor before its bytes are read, and where the bytes come from.

Every source (a safetensors folder, a GGUF file) offers the same two things: the tensors it has, and one tensor's
bytes in pieces. A new encoding is a new `dtype` here and a source that yields its bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

PIECE_BYTES = 8 * 2**20
"""Bytes read and written at a time: large enough for the disk, small beside a block."""

DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
"""Bits an element of each safetensors dtype that can be packed."""

TORCH_NAMES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "F8_E5M2": "float8_e5m2", "F8_E4M3": "float8_e4m3fn",
    "F8_E8M0": "float8_e8m0fnu", "U16": "uint16", "I16": "int16", "F16": "float16", "BF16": "bfloat16",
    "U32": "uint32", "I32": "int32", "F32": "float32", "U64": "uint64", "I64": "int64", "F64": "float64",
    "C64": "complex64",
}  # fmt: skip
"""torch's name of each safetensors dtype."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """A tensor's name in the checkpoint, safetensors dtype and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def n_elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def n_bytes(self) -> int:
        """Size of the data in bytes."""
        return self.n_elements * DTYPE_BITS[self.dtype] // 8


class TensorSource(Protocol):
    """Where tensors come from. Used by one thread; whoever opened it closes it."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor by name."""
        ...

    def pieces(self, name: str) -> Iterator[memoryview]:
        """The tensor's bytes in order, row-major and little-endian; a piece is valid until the next is asked for.

        Raises:
            UntrustedFileError: the file ended early or can't be converted.
        """
        ...
