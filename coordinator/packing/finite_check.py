"""Whether a tensor's values are finite, looked at while its bytes pass: a damaged file is refused, not served.

A piece whose sum is finite has nothing else in it: one pass. The exact look follows only where the sum isn't.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from protocol.errors import UntrustedFileError
from protocol.model_files.tensors import ENCODED_BYTES, TensorInfo

_FLOATS: Mapping[str, torch.dtype] = {
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.float32,  # its two parts
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E8M0": torch.float8_e8m0fnu,
}
_SCALES: Mapping[str, int] = {"Q4_0": 1, "Q4_1": 2, "Q8_0": 1}
"""float16 numbers at the beginning of a group of each encoding; what follows are codes, which are always finite."""


@dataclass(slots=True, kw_only=True)
class FiniteCheck:
    """Takes the pieces of one tensor, cut anywhere; whole numbers only are looked at."""

    info: TensorInfo
    n_nan: int = 0
    n_infinite: int = 0
    _rest: bytes = b""

    def take(self, piece: memoryview) -> None:
        """The next bytes of the tensor."""
        n_together = _n_bytes_together(self.info.dtype)
        if n_together == 0:
            return
        data: memoryview | bytes = self._rest + bytes(piece) if self._rest else piece
        n_whole = len(data) // n_together * n_together
        self._rest = bytes(data[n_whole:])
        if n_whole:
            self._count(_numbers(data[:n_whole], self.info.dtype))

    def check(self) -> None:
        """All has been taken.

        Raises:
            UntrustedFileError: there was NaN or infinity.
        """
        if self.n_nan or self.n_infinite:
            what = "scales of its groups" if self.info.dtype in ENCODED_BYTES else "values"
            raise UntrustedFileError(
                f"tensor {self.info.name!r} ({self.info.dtype}, {self.info.n_elements:,} values) has "
                f"{self.n_nan:,} {what} that are NaN and {self.n_infinite:,} that are infinite: the file is "
                "damaged, or the model was saved so; fetch it again, or use another version of it"
            )

    def _count(self, values: torch.Tensor) -> None:
        if values.itemsize == 1:  # nothing sums these; no scale of a model is so large that it overflows here
            values = values.to(torch.float32)
        wide = torch.float64 if values.dtype == torch.float64 else torch.float32
        if torch.isfinite(values.sum(dtype=wide)):
            return
        self.n_nan += int(torch.isnan(values).sum())
        self.n_infinite += int(torch.isinf(values).sum())


def _n_bytes_together(dtype: str) -> int:
    """Bytes of a number or group; 0 where all there can be is finite."""
    return ENCODED_BYTES.get(dtype) or (_FLOATS[dtype].itemsize if dtype in _FLOATS else 0)


def _numbers(data: memoryview | bytes, dtype: str) -> torch.Tensor:
    """What can be other than finite."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that the bytes can't be written to: nobody does
        if dtype in _FLOATS:
            return torch.frombuffer(data, dtype=_FLOATS[dtype])
        groups = torch.frombuffer(data, dtype=torch.uint8).reshape(-1, ENCODED_BYTES[dtype])
        return groups[:, : 2 * _SCALES[dtype]].contiguous().view(torch.float16)
