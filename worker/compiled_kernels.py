"""Have a recorded step call kernels of our own: by the shortest way, and where several operations do what they do.

What a graph looks like there says `worker.compiled_shortening`, for which this is a pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from worker.row_kernels import NORM, can_rotate, normed, rotated

aten: Any = torch.ops.aten
_Node = Any
"""`fx.Node`, whose arguments are a union of all that there can be."""


def use_kernels(graph: fx.Graph) -> None:
    """In place; what nobody uses any more stays in the graph."""
    for node in graph.nodes:
        if node.target is NORM:
            node.target = normed
        elif node.target is aten.add.Tensor:
            _rotate(node)


def _rotate(node: _Node) -> None:
    """`x * cos + roll(x) * sin`, in whatever order."""
    if len(node.args) != 2 or node.kwargs or not all(isinstance(one, fx.Node) for one in node.args):
        return
    for plain, turned in (node.args, node.args[::-1]):
        for rolled, sin in _factors(turned):
            if rolled.target is not aten.roll.default:
                continue
            x, shifts, dims = rolled.args
            cos = next((other for one, other in _factors(plain) if one is x), None)
            if cos is None or not _is_by_half(x, shifts, dims):
                continue
            if can_rotate(*(one.meta["val"] for one in (x, cos, sin))):
                node.target, node.args = rotated, (x, cos, sin)
            return


def _factors(node: _Node) -> list[tuple[_Node, _Node]]:
    if node.target is not aten.mul.Tensor or not all(isinstance(one, fx.Node) for one in node.args):
        return []
    one, other = node.args
    return [(one, other), (other, one)]


def _is_by_half(x: _Node, shifts: list[int], dims: list[int]) -> bool:
    value = x.meta["val"]
    return [2 * shift for shift in shifts] == [value.shape[-1]] and [dim % value.dim() for dim in dims] == [
        value.dim() - 1
    ]
