"""GGUF's 4 and 8 bit encodings as model files hold them, byte by byte: the codes of a row, 32 at a time.

    NAME.q4_0   for each 32 weights: scale (float16), 16 bytes of codes; weight = (code - 8) * scale
    NAME.q4_1   scale, minimum (float16), 16 bytes of codes;             weight = code * scale + minimum
    NAME.q8_0   scale (float16), 32 bytes of codes with a sign;          weight = code * scale

The first 16 weights are the low halves of the 16 bytes, the last 16 the high ones. A file of an older coordinator
has float32 instead, under the plain name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from protocol.errors import UntrustedFileError
from worker.codes import GROUP, CodedRows, halves
from worker.file_tensors import FileTensor

_HALF = GROUP // 2
_ROWS_AT_ONCE = 1024
BYTES_PER_GROUP: Mapping[str, int] = {"q4_0": 18, "q4_1": 20, "q8_0": 34}
"""By encoding, which is also the suffix of the tensor's name."""


class EncodedTensor:
    """A tensor of a file in one of GGUF's encodings; read by rows, as values or as codes."""

    def __init__(self, stored: FileTensor, encoding: str) -> None:
        """Of the bytes `stored`.

        Raises:
            UntrustedFileError: it is no matrix of whole groups of this encoding.
        """
        shape = tuple(stored.get_shape())
        self.encoding = encoding
        self._stored = stored
        self._group_bytes = BYTES_PER_GROUP[encoding]
        if stored.get_dtype() != "U8" or len(shape) != 2 or shape[1] % self._group_bytes:
            raise UntrustedFileError(
                f"{stored.name}: {stored.get_dtype()} of shape {shape} is no matrix of {encoding} groups of "
                f"{self._group_bytes} bytes"
            )
        self._shape = (shape[0], shape[1] // self._group_bytes * GROUP)

    @property
    def origin(self) -> FileTensor:
        """The bytes, in their file."""
        return self._stored

    @property
    def n_bits(self) -> int:
        """Bits of a code."""
        return 8 if self.encoding == "q8_0" else 4

    def get_shape(self) -> tuple[int, int]:
        """Rows and columns of the matrix."""
        return self._shape

    def get_dtype(self) -> str:
        """What indexing gives."""
        return "F32"

    def __getitem__(self, index: Any) -> torch.Tensor:
        """The values, float32: the very ones that the `gguf` library gives."""
        raw, values = self.raw(), torch.empty(self._shape, dtype=torch.float32)
        for start in range(0, len(raw), _ROWS_AT_ONCE):
            values[start : start + _ROWS_AT_ONCE] = self.coded(raw[start : start + _ROWS_AT_ONCE]).values(
                torch.float32
            )
        return values[index]

    def raw(self) -> torch.Tensor:
        """The bytes, (n_rows, n_groups, bytes of a group)."""
        return self._stored[...].view(self._shape[0], -1, self._group_bytes)

    def coded(self, groups: torch.Tensor) -> CodedRows:
        """The codes of some of the rows of `raw`, with the file's own scales and minima."""
        scales = _float16(groups, 0)
        if self.encoding == "q8_0":
            codes = groups[..., 2:].contiguous() ^ 0x80  # two's complement to an offset of 128
            return CodedRows(n_bits=8, codes=codes, scales=scales, zeros=None, zero_code=128)
        codes = halves(groups[..., -_HALF:])
        if self.encoding == "q4_0":
            return CodedRows(n_bits=4, codes=codes, scales=scales, zeros=None, zero_code=8)
        return CodedRows(n_bits=4, codes=codes, scales=scales, zeros=_float16(groups, 2), zero_code=0)


def with_encodings(tensors: Mapping[str, FileTensor]) -> dict[str, FileTensor | EncodedTensor]:
    """The tensors of a file under their plain names, those that are encoded as `EncodedTensor`.

    Raises:
        UntrustedFileError: an encoded tensor isn't what its name says, or is there twice.
    """
    found: dict[str, FileTensor | EncodedTensor] = {}
    for name, stored in tensors.items():
        plain, _, suffix = name.rpartition(".")
        is_encoded = suffix in BYTES_PER_GROUP
        key = plain if is_encoded else name
        if key in found:
            raise UntrustedFileError(f"the tensor {key} is there twice")
        found[key] = EncodedTensor(stored, suffix) if is_encoded else stored
    return found


def _float16(groups: torch.Tensor, offset: int) -> torch.Tensor:
    return groups[..., offset : offset + 2].contiguous().view(torch.float16)[..., 0]
