"""Linear layers and embeddings whose weights are codes of 4 or 8 bits, for torch's packed int4 kernel on the CPU.

The kernel multiplies bfloat16 rows with (code - 8) * scale + zero, added up in float32. A code of 8 bits is two of
4, end to end: 16 * (high - 8) + low. So one token's product reads a third or two thirds of what bfloat16 reads, and
8 bits have a scale for each 32 weights too, which torch's own int8 kernel lacks, besides being slower
(docs/decisions/0010). Codes stay as they were given; scales and zeros are bfloat16, like all that is computed with.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn

from protocol.errors import ConfigError
from worker.codes import GROUP, ROWS_AT_ONCE, RowsOfCodes
from worker.quantised_matrix import CodedMatrix
from worker.widened_linear import matmul

COMPUTE_DTYPE = torch.bfloat16
"""The only one that the kernel has vector instructions for: float32 and float16 take 25 times as long."""
_PADDED_ROWS = 64
"""Rows come in whole blocks of the kernel; 64 is a multiple of every processor's."""
_UNPACKED_ROWS_AT_ONCE = 2048
_MOST_KERNEL_ROWS = {4: 64, 8: 40}
"""Rows of the input, by bits of a code, beyond which unpacking the matrix for an ordinary product is faster."""

# torch has no public names for them; `torchao` calls them so too
_pack: Any = torch.ops.aten._convert_weight_to_int4pack_for_cpu  # noqa: SLF001
_packed_product: Any = torch.ops.aten._weight_int4pack_mm_for_cpu  # noqa: SLF001


@dataclass(frozen=True, slots=True, kw_only=True)
class NibbleOrder:
    """Where the kernel's packing puts the codes of a block of `n_rows` rows: (n_columns, n_rows / 2) bytes."""

    n_rows: int
    places: tuple[int, ...]
    """For each row its place: the low halves of the bytes first, then the high ones."""

    @property
    def is_plain(self) -> bool:
        """Whether the places are in the order of the rows."""
        return self.places == tuple(range(self.n_rows))


class QuantisedMatrix(CodedMatrix):
    """A matrix of codes in the order of the CPU's kernel."""

    def __init__(self, n_rows: int, n_columns: int, n_bits: int, coded: RowsOfCodes) -> None:
        super().__init__(n_rows, n_columns, n_bits)
        self._order = nibble_order()
        n_padded = -(-n_rows // _PADDED_ROWS) * _PADDED_ROWS
        n_inputs = n_columns * n_bits // 4
        packed = torch.zeros((n_padded, n_inputs // 2), dtype=torch.uint8)
        scales_and_zeros = torch.zeros((n_inputs // GROUP, n_padded, 2), dtype=COMPUTE_DTYPE)
        for start in range(0, n_rows, ROWS_AT_ONCE):
            end = min(start + ROWS_AT_ONCE, n_rows)
            codes, scales, zeros = coded(start, end).by_four_bits(COMPUTE_DTYPE)
            padded = nn.functional.pad(codes.int(), (0, 0, 0, -(end - start) % _PADDED_ROWS))
            packed[start : start + len(padded)] = _pack(padded, 1)
            scales_and_zeros[:, start:end, 0] = scales.t()
            scales_and_zeros[:, start:end, 1] = zeros.t()
        self.packed = nn.Parameter(packed, requires_grad=False)
        self.scales_and_zeros = nn.Parameter(scales_and_zeros, requires_grad=False)

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """`x` (..., n_columns) times the matrix, transposed: (..., n_rows)."""
        shape = x.shape
        rows = x.reshape(-1, self.n_columns)
        if rows.shape[0] <= _MOST_KERNEL_ROWS[self.n_bits]:
            inputs = rows if self.n_bits == 4 else torch.cat((rows, rows), dim=1)
            result: torch.Tensor = _packed_product(inputs, self.packed, GROUP, self.scales_and_zeros)
        else:
            result = self._unpacked_product(rows)
        if result.shape[1] != self.n_rows:
            result = result[:, : self.n_rows]
        return result.view(*shape[:-1], self.n_rows)

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        """The rows of these numbers, (*ids.shape, n_columns)."""
        flat = ids.reshape(-1)
        places = torch.tensor(self._order.places, device=ids.device)[flat % self._order.n_rows]
        n_bytes = self._order.n_rows // 2
        packed = self._blocks(slice(None))[flat // self._order.n_rows, :, places % n_bytes]
        codes = torch.where((places < n_bytes)[:, None], packed & 15, packed >> 4)
        scales, zeros = self.scales_and_zeros[:, flat].permute(2, 1, 0)
        if self.n_bits == 8:
            low, high = codes[:, self.n_columns :], codes[:, : self.n_columns]
            codes, n_groups = (high << 4) | low, scales.shape[1] // 2
            scales, zeros = scales[:, n_groups:], torch.zeros_like(zeros[:, n_groups:])
        signed = _signed(codes, self.n_bits).to(COMPUTE_DTYPE).view(len(flat), -1, GROUP)
        return torch.addcmul(zeros[..., None], signed, scales[..., None]).reshape(*ids.shape, self.n_columns)

    def dense(self) -> torch.Tensor:
        """The matrix's values, (n_rows, n_columns)."""
        return self.rows(torch.arange(self.n_rows, device=self.packed.device))

    def _unpacked_product(self, rows: torch.Tensor) -> torch.Tensor:
        n_blocks = len(self.packed) // self._order.n_rows
        n_at_once = _UNPACKED_ROWS_AT_ONCE // self._order.n_rows
        return torch.cat(
            [
                matmul(rows, self._unpacked(slice(start, start + n_at_once))).permute(1, 0, 2).flatten(1)
                for start in range(0, n_blocks, n_at_once)
            ],
            dim=1,
        )

    def _unpacked(self, blocks: slice) -> torch.Tensor:
        """Values of these blocks of rows, as (n_blocks, n_columns, rows of a block)."""
        packed = self._blocks(blocks)
        codes = torch.cat((packed & 15, packed >> 4), dim=-1)
        if not self._order.is_plain:
            codes = codes[..., list(self._order.places)]
        scales, zeros = self._by_blocks(blocks)
        if self.n_bits == 8:
            codes = (codes[:, : self.n_columns] << 4) | codes[:, self.n_columns :]
            n_groups = scales.shape[1] // 2
            scales, zeros = scales[:, n_groups:], torch.zeros_like(zeros[:, n_groups:])
        signed = _signed(codes, self.n_bits).to(COMPUTE_DTYPE).view(len(packed), -1, GROUP, self._order.n_rows)
        return torch.addcmul(zeros, signed, scales).reshape(len(packed), self.n_columns, self._order.n_rows)

    def _blocks(self, blocks: slice) -> torch.Tensor:
        """(n_blocks, inputs, bytes)."""
        return self.packed.view(-1, self.packed.shape[1] * 2, self._order.n_rows // 2)[blocks]

    def _by_blocks(self, blocks: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Scales and zeros, (n_blocks, n_groups, 1, rows of a block)."""
        n_groups, n_padded, _ = self.scales_and_zeros.shape
        by_block = self.scales_and_zeros.view(n_groups, n_padded // self._order.n_rows, self._order.n_rows, 2)
        scales, zeros = by_block[:, blocks].permute(3, 1, 0, 2).unsqueeze(3).contiguous()
        return scales, zeros


class _OverMatrix(nn.Module):
    """Stands where a library's module stood; `matrix` is set when the weights are there."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix: CodedMatrix | None = None

    @property
    def weight(self) -> torch.Tensor:
        """The values, unpacked: slow, for the rare model code that looks at them.

        There are none while a model is built: what a model's own code initialises then goes nowhere.
        """
        return torch.empty(0) if self.matrix is None else self.matrix.dense()


class QuantisedLinear(_OverMatrix):
    """`nn.Linear` over a quantised matrix."""

    def __init__(self, linear: nn.Linear) -> None:
        """Stands where `linear` stood, whose bias it takes."""
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias: nn.Parameter | None = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As a linear layer's."""
        matrix: Any = self._modules["matrix"]  # to look up an attribute of a module takes a microsecond
        result: torch.Tensor = matrix.product(x)
        return result if self.bias is None else result + self.bias


class QuantisedEmbedding(_OverMatrix):
    """`nn.Embedding` over a quantised matrix, which may be a tied head's too."""

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = embedding.num_embeddings, embedding.embedding_dim

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """As an embedding's."""
        assert self.matrix is not None
        return self.matrix.rows(ids)


@cache
def nibble_order() -> NibbleOrder:
    """How this processor's kernel packs, found out by packing the rows' own numbers.

    Raises:
        ConfigError: in a way that isn't known here.
    """
    numbers = torch.arange(_PADDED_ROWS, dtype=torch.int32)[:, None].expand(_PADDED_ROWS, GROUP)
    halves = [_pack(part.contiguous(), 1) for part in (numbers % 16, numbers // 16)]
    for n_rows in (64, 32, 16):
        rest, sixteens = (half.view(-1, GROUP, n_rows // 2).int() for half in halves)
        found = torch.cat(((rest & 15) + 16 * (sixteens & 15), (rest >> 4) + 16 * (sixteens >> 4)), dim=-1)
        starts = torch.arange(0, _PADDED_ROWS, n_rows)[:, None, None]
        if (found == found[0, 0] + starts).all():
            return NibbleOrder(n_rows=n_rows, places=tuple(found[0, 0].argsort().tolist()))
    raise ConfigError(f"torch {torch.__version__} packs weights in an unknown order on this processor")


def _signed(codes: torch.Tensor, n_bits: int) -> torch.Tensor:
    """Codes less their middle, int8."""
    return (codes ^ 128).view(torch.int8) if n_bits == 8 else codes.view(torch.int8) - 8
