"""The form of a matrix of codes for torch's packed int4 kernel on accelerators (CUDA, MPS).

The kernel multiplies with (code - 8) * scale + zero, 32 codes a scale, as the CPU's does, but has its own order of
codes, which can't be undone: single rows can't be looked up. Codes of 8 bits are two of 4.
Scales and zeros have to be of the type that is computed in, so those of a GGUF file are rounded if it is bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from worker.codes import GROUP, ROWS_AT_ONCE, RowsOfCodes
from worker.quantised_matrix import CodedMatrix

_PADDED_ROWS = 8
"""Rows come in whole tiles."""
_TILES = (8, 4, 2)
"""How many tiles of 16 columns lie together; the most that the matrix is a multiple of is the fastest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TileKernel:
    """A packed int4 kernel."""

    pack: Callable[[torch.Tensor, int], torch.Tensor]
    """Codes (n_rows, n_columns) uint8 of a whole matrix, and the tiles of 16 columns that are to lie together."""
    product: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
    """Inputs (n, n_columns), what was packed, and (n_groups, n_rows, 2) scales and zeros."""


def _pack(codes: torch.Tensor, n_tiles: int) -> torch.Tensor:
    pack: Any = torch.ops.aten._convert_weight_to_int4pack  # noqa: SLF001 - it has no public name
    packed: torch.Tensor = pack((codes[:, ::2] << 4) | codes[:, 1::2], n_tiles)
    return packed


def _product(x: torch.Tensor, packed: torch.Tensor, scales_and_zeros: torch.Tensor) -> torch.Tensor:
    product: Any = torch.ops.aten._weight_int4pack_mm  # noqa: SLF001
    result: torch.Tensor = product(x.contiguous(), packed, GROUP, scales_and_zeros)
    return result


ACCELERATOR_KERNEL = TileKernel(pack=_pack, product=_product)
"""torch's, on CUDA (compute capability 8.0 and up, bfloat16 only) and MPS."""


class TiledMatrix(CodedMatrix):
    """A matrix of codes in the kernel's order."""

    def __init__(
        self,
        n_rows: int,
        n_columns: int,
        n_bits: int,
        coded: RowsOfCodes,
        *,
        device: torch.device,
        dtype: torch.dtype,
        kernel: TileKernel = ACCELERATOR_KERNEL,
    ) -> None:
        super().__init__(n_rows, n_columns, n_bits)
        self._kernel = kernel
        parts = [
            coded(start, min(start + ROWS_AT_ONCE, n_rows)).by_four_bits(dtype)
            for start in range(0, n_rows, ROWS_AT_ONCE)
        ]
        codes, scales, zeros = (torch.cat(part).to(device) for part in zip(*parts, strict=True))
        n_missing = -n_rows % _PADDED_ROWS
        self.n_inputs = codes.shape[1]
        n_tiles = next(n for n in _TILES if self.n_inputs % (16 * n) == 0)
        both = torch.stack((scales, zeros), dim=-1)
        both = nn.functional.pad(both, (0, 0, 0, 0, 0, n_missing)).transpose(0, 1).contiguous()
        packed = kernel.pack(nn.functional.pad(codes, (0, 0, 0, n_missing)), n_tiles)
        self.packed = nn.Parameter(packed, requires_grad=False)
        self.register_buffer("scales_and_zeros", both)

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """By the kernel, however many rows `x` has."""
        rows = x.reshape(-1, self.n_columns)
        if self.n_inputs != self.n_columns:
            rows = torch.cat((rows, rows), dim=1)
        result = self._kernel.product(rows, self.packed, self.get_buffer("scales_and_zeros"))
        return result[:, : self.n_rows].view(*x.shape[:-1], self.n_rows)

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        """Out of the whole matrix: don't use this form for embeddings."""
        return self.dense()[ids]

    def dense(self) -> torch.Tensor:
        """The product with the identity, which shows the values."""
        both = self.get_buffer("scales_and_zeros")
        return self.product(torch.eye(self.n_columns, dtype=both.dtype, device=both.device)).t()
