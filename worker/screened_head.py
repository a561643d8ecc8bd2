"""A head that looks closely only at the tokens that can be the likeliest, where only the likeliest is wanted.

For one row, a product with the head's matrix in float32 takes as long as reading the matrix, which for a small
model is a fifth of a step. So codes of 8 bits are kept beside it. Their products with the row, whose values are
rounded to 8 bits too but for the few largest, are whole numbers, and how far they are from the exact logits at most
follows from the lengths of what was rounded off (by Cauchy and Schwarz). Which tokens may have the largest logit is
known then, for certain; their logits alone are computed from the matrix in float32. So the likeliest token is the
one that it would be by all exact logits.

For a row x = t + r (t: its largest values, all else 0), the rounding r' of r, a row w of the matrix and its
rounding w', all lengths Euclidean:    |w.x - (w.t + w'.r')| <= |w - w'| |r'| + |w| |r - r'|

In final hidden states a few values are many times as large as the others (Dettmers et al. 2022, "LLM.int8()");
rounded with them, the others would lose most of their bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.functional import linear

from worker.column_linear import ColumnLinear

_LARGEST_CODE = 127
_MAX_EXACT = 512
"""Tokens that are left; with more, the exact product of all is the quicker way."""
_EXACT_SHARE = 64
"""One of so many of a row's values is not rounded: the largest."""
_UNIT_ROUNDOFF = 2.0**-24
"""Of float32. A sum of n products is off by n of these at most, times both lengths (Higham 2002, 3.1)."""
_LEAST_LENGTH = 1e-10
"""Of a row of the input. Squares of much shorter ones' values are rounded to zero, and their lengths with them."""
_ROWS_AT_A_TIME = 4096


class ScreenedHead(nn.Module):
    """Does what a linear layer does, which it takes over; in `screening`, only as far as the largest needs it."""

    codes: torch.Tensor
    scales: torch.Tensor
    norms: torch.Tensor

    def __init__(self, head: ColumnLinear) -> None:
        """`head`: with finite weights; its columns are read, so they have to lie together."""
        super().__init__()
        self.head = head
        self.max_rows = 1
        """Of the input, up to which it is worth it; beyond, all logits are exact."""
        self._is_screening = False
        codes, scales, norms, self._rounded_off = _rounded(head.weight.detach())
        self.register_buffer("codes", codes, persistent=False)
        self.register_buffer("scales", scales, persistent=False)
        self.register_buffer("norms", norms, persistent=False)

    @property
    def weight(self) -> torch.Tensor:
        """The exact matrix, (vocab_size, hidden_size)."""
        weight: torch.Tensor = self.head.weight
        return weight

    @property
    def memory(self) -> tuple[int, int]:
        """Address and size of the codes."""
        return self.codes.data_ptr(), self.codes.nbytes

    def sums_exactly(self) -> bool:
        """Whether products of codes are summed exactly here: no bound holds where they aren't.

        oneDNN adds two of them in 16 bits where the processor has no VNNI, and what doesn't fit is cut off.
        """
        largest = self.codes.new_full((1, self.codes.shape[1]), _LARGEST_CODE)
        some = self.codes[:_ROWS_AT_A_TIME]  # to sum all up takes seconds
        return torch.equal(
            _products(largest, self.codes)[: len(some)], _LARGEST_CODE * some.sum(1, dtype=torch.int32)
        )

    @contextmanager
    def screening(self) -> Iterator[None]:
        """While this is open, of each row's logits only the largest need be right."""
        self._is_screening = True
        try:
            yield
        finally:
            self._is_screening = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (..., vocab_size); in `screening` the largest of each row is right, and all others are less."""
        if not self._is_screening or x.numel() > self.max_rows * x.shape[-1]:
            logits: torch.Tensor = self.head(x)
            return logits
        rows = [self._screened(row) for row in x.reshape(-1, x.shape[-1])]
        together = rows[0] if len(rows) == 1 else torch.stack(rows)
        return together.view(*x.shape[:-1], -1)

    def _screened(self, row: torch.Tensor) -> torch.Tensor:
        """Logits (vocab_size,) of one row (hidden_size,)."""
        length = float(row.norm())
        if not _LEAST_LENGTH < length < torch.inf:
            return self._exact(row)
        columns = self.weight.t()
        large = row.abs().topk(-(-len(row) // _EXACT_SHARE)).indices
        rest = row.index_fill(0, large, 0.0)
        scale = max(float(rest.abs().max()), torch.finfo(torch.float32).tiny) / _LARGEST_CODE
        codes = (rest / scale).round_()
        roughly = _products(codes.to(torch.int8)[None], self.codes) * self.scales
        roughly *= scale
        for column, value in zip(large.tolist(), row[large].tolist(), strict=True):
            roughly.add_(columns[column], alpha=value)
        rounded = codes.mul_(scale)
        share = self._rounded_off * float(rounded.norm()) + float(rest.sub_(rounded).norm())
        off_by = self.norms * (share + 4 * len(row) * _UNIT_ROUNDOFF * length)
        bias: torch.Tensor | None = self.head.bias
        if bias is not None:
            roughly += bias
            off_by.add_(roughly.abs(), alpha=4 * _UNIT_ROUNDOFF)
        left = (roughly + off_by >= (roughly - off_by).max()).nonzero()[:, 0]
        if not 0 < len(left) <= _MAX_EXACT:
            return self._exact(row)
        exact = linear(row, self.weight[left], None if bias is None else bias[left])
        return _with_largest(roughly, left, exact)

    def _exact(self, row: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(row)
        return logits


def _rounded(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]:
    """Codes, scale and length of each row, and the largest share of a length that was rounded off."""
    n_rows, n_columns = weight.shape
    codes = torch.empty(n_rows, n_columns, dtype=torch.int8)
    scales, norms, rounded_off = torch.empty(n_rows), torch.empty(n_rows), 0.0
    tiny = torch.finfo(torch.float32).tiny
    for start in range(0, n_rows, _ROWS_AT_A_TIME):
        part = slice(start, start + _ROWS_AT_A_TIME)
        rows = weight[part].clone(memory_format=torch.contiguous_format)
        scales[part] = (rows.abs().amax(1) / _LARGEST_CODE).clamp_(min=tiny)
        rows /= scales[part, None]  # so that float32 holds their squares
        near = rows.round()
        codes[part] = near.to(torch.int8)
        norms[part] = rows.norm(dim=1)
        off = rows.sub_(near).norm(dim=1)
        rounded_off = max(rounded_off, float((off / norms[part].clamp(min=tiny)).max()))
    return codes, scales, norms.mul_(scales), rounded_off


def _products(row: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """The product (n_codes,) of codes with a row (1, hidden_size) of them, in whole numbers."""
    products: torch.Tensor = torch._int_mm(row, codes.t())[0]  # noqa: SLF001 - torch has no public name for it
    return products


def _with_largest(logits: torch.Tensor, tokens: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
    """The logits with the exact ones of these tokens, and all others below the largest of those."""
    largest = exact.max()
    logits.clamp_(max=torch.nextafter(largest, largest.new_tensor(-torch.inf)))
    logits[tokens] = exact
    return logits
