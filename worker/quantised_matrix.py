"""What a matrix of codes does, in whatever form it lies in memory; and the form that every device can compute with.

`worker.quantised` has the form for the CPU's packed kernel, `worker.quantised_tiles` the one for accelerators',
`worker.quantised_forms` chooses.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import nn

from worker.codes import PackedCodes, RowsOfCodes, pack_codes

_VALUES_AT_ONCE = 2**23
"""That are unpacked for a product: 16 MB in 16 bits."""


class CodedMatrix(nn.Module):
    """A matrix (n_rows, n_columns) of codes. Its tensors are parameters or buffers, for whoever sizes or shares."""

    def __init__(self, n_rows: int, n_columns: int, n_bits: int) -> None:
        super().__init__()
        self.n_rows, self.n_columns, self.n_bits = n_rows, n_columns, n_bits

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """`x` (..., n_columns) times the matrix, transposed: (..., n_rows)."""
        raise NotImplementedError

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        """The rows of these numbers, (*ids.shape, n_columns)."""
        raise NotImplementedError

    def dense(self) -> torch.Tensor:
        """The matrix's values, (n_rows, n_columns)."""
        raise NotImplementedError


class MatrixForm(Protocol):
    """Makes matrices of one form."""

    def __call__(self, n_rows: int, n_columns: int, n_bits: int, coded: RowsOfCodes) -> CodedMatrix:
        """A matrix whose codes `coded` gives; it is asked for some hundred rows at a time, in order."""
        ...


class UnpackedMatrix(CodedMatrix):
    """Codes that are multiplied out for each product, a part of the rows at a time.

    With the very scales that the codes came with: a weight is rounded once, to what is computed with.
    """

    def __init__(
        self,
        n_rows: int,
        n_columns: int,
        n_bits: int,
        coded: RowsOfCodes,
        *,
        device: torch.device,
        dtype: torch.dtype,
        because: str = "",
    ) -> None:
        """`because`: why it isn't in a faster form, if there might be one."""
        super().__init__(n_rows, n_columns, n_bits)
        self.because = because
        codes = pack_codes(n_rows, coded, device)
        self.dtype = dtype
        self.zero_code = codes.zero_code
        self.packed = nn.Parameter(codes.packed, requires_grad=False)
        # buffers: the type of a model's parameters is taken for what it computes in
        self.register_buffer("scales", codes.scales)
        self.register_buffer("zeros", codes.zeros)

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """By the device's own product of `dtype`."""
        n_at_once = max(1, _VALUES_AT_ONCE // self.n_columns)
        codes = self._codes()
        parts = [
            nn.functional.linear(x, codes.rows(start, start + n_at_once).values(self.dtype))
            for start in range(0, self.n_rows, n_at_once)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        """Looked up, then multiplied out."""
        return self._codes().pick(ids.reshape(-1)).few_values(self.dtype).view(*ids.shape, self.n_columns)

    def dense(self) -> torch.Tensor:
        """All of it at once."""
        return self._codes().rows(0, self.n_rows).values(self.dtype)

    def _codes(self) -> PackedCodes:
        scales, zeros = self.get_buffer("scales"), self._buffers["zeros"]
        return PackedCodes(packed=self.packed, scales=scales, zeros=zeros, zero_code=self.zero_code)
