"""What packing knows of a tensor before its bytes are read, and where the bytes come from.

Every source (a safetensors folder, a GGUF file) offers the same two things: the tensors it has, and one tensor's
bytes in pieces. A new encoding is a new `dtype` here and a source that yields its bytes; safetensors doesn't know
it, so that in a file the tensor is one of bytes, and the encoding is a suffix of its name.
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

ENCODED_BYTES = {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34}
"""Bytes of a group of each of GGUF's encodings that is packed as it is: those that workers compute with."""
GROUP_ELEMENTS = 32
"""Elements of a group: neighbours in a row."""

TORCH_NAMES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "F8_E5M2": "float8_e5m2", "F8_E4M3": "float8_e4m3fn",
    "F8_E8M0": "float8_e8m0fnu", "U16": "uint16", "I16": "int16", "F16": "float16", "BF16": "bfloat16",
    "U32": "uint32", "I32": "int32", "F32": "float32", "U64": "uint64", "I64": "int64", "F64": "float64",
    "C64": "complex64", **{name: name.lower() for name in ENCODED_BYTES},
}  # fmt: skip
"""torch's name of each safetensors dtype; GGUF's, in lower case, of encodings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """A tensor's name in the checkpoint, its dtype (safetensors' or an encoding) and shape."""

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
        if self.dtype in ENCODED_BYTES:
            return self.n_elements // GROUP_ELEMENTS * ENCODED_BYTES[self.dtype]
        return self.n_elements * DTYPE_BITS[self.dtype] // 8

    @property
    def stored(self) -> TensorInfo:
        """The tensor as it is in a safetensors file: an encoded matrix is one of bytes, named for its encoding."""
        if self.dtype not in ENCODED_BYTES:
            return self
        n_rows, n_columns = self.shape
        n_bytes = n_columns // GROUP_ELEMENTS * ENCODED_BYTES[self.dtype]
        return TensorInfo(name=f"{self.name}.{self.dtype.lower()}", dtype="U8", shape=(n_rows, n_bytes))


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
