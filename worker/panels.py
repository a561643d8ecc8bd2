"""Products with matrices in panels of 16 rows, by kernels of our own, for processors with AVX2 and not AVX512.

torch's kernels for those read a matrix once for nearly every row of the input, or compute with it in a loop. Ours
multiply up to six rows with what they read: four rows of float32 take as long as one (docs/decisions/0025). Sums
are float32, in one order, however many rows there are.

A panel lies as the kernels read it: 16 rows' numbers of the first column, then of the second. Those of bfloat16 lie
0, 8, 1, 9, ...: so a half of each 32 bits is a number of float32 less its last 16 bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from worker.kernels import KINDS, Call, check_bias, check_input, kernels

PANEL = 16
"""Rows of a matrix that lie together."""


class PanelWeights:
    """A matrix (n_rows, n_columns) of float32 or bfloat16 in panels; the last is filled up with zeros."""

    def __init__(self, weight: torch.Tensor) -> None:
        self.n_rows, self.n_columns = weight.shape
        self._dtype = weight.dtype
        self._panels = _in_panels(weight)
        self._multiply = kernels().multiply

    @property
    def memory(self) -> Sequence[tuple[int, int]]:
        """As of all weights."""
        return [(self._panels.data_ptr(), self._panels.nbytes)]

    def dense(self) -> torch.Tensor:
        """As of all weights."""
        panels = self._panels
        if self._dtype != torch.float32:
            panels = panels.view(-1, self.n_columns, PANEL // 2, 2).transpose(2, 3).reshape(panels.shape)
        return panels.transpose(1, 2).reshape(-1, self.n_columns)[: self.n_rows]

    def product(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """As of all weights, and of their type; rounded once."""
        x = x.contiguous()
        result = x.new_empty((*x.shape[:-1], self.n_rows))
        multiply, arguments = self.into(x, bias, result)
        multiply(*arguments)
        return result

    def into(self, x: torch.Tensor, bias: torch.Tensor | None, result: torch.Tensor) -> Call:
        """What puts the product of `x`, without gaps, into `result`, (..., n_rows) without gaps.

        Raises:
            ValueError: these aren't for such a matrix.
        """
        check_input(x, self._dtype, self.n_columns)
        if bias is not None:
            check_bias(bias, self._dtype, self.n_rows)
        return self._multiply, (
            x.data_ptr(),
            0 if bias is None else bias.data_ptr(),
            result.data_ptr(),
            x.numel() // self.n_columns,
            self.n_rows,
            self.n_columns,
            self._panels.data_ptr(),
            KINDS[self._dtype],
            KINDS[self._dtype],
            torch.get_num_threads(),
        )


def _in_panels(weight: torch.Tensor) -> torch.Tensor:
    """(n_panels, n_columns, PANEL)."""
    n_rows, n_columns = weight.shape
    n_whole = n_rows // PANEL
    panels = weight.new_zeros((-(-n_rows // PANEL), n_columns, PANEL))
    for panel in range(n_whole):
        panels[panel] = weight[panel * PANEL : (panel + 1) * PANEL].t()
    panels[n_whole:, :, : n_rows - n_whole * PANEL] = weight[n_whole * PANEL :].t()
    if weight.dtype == torch.float32:
        return panels
    return panels.view(-1, n_columns, 2, PANEL // 2).transpose(2, 3).reshape(panels.shape)
