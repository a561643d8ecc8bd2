"""Operations of a recorded step as calls whose tensors, and what they put their results into, stay where they are.

A kernel of our own is called with addresses then, worked out once; of torch's operations those that can are told
where to put their result, what others give is copied there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from worker.coded_panels import CodedPanels
from worker.compiled_shortening import call_layer
from worker.kernels import Call
from worker.packed_linear import PackedLinear
from worker.panels import PanelWeights
from worker.quantised import QuantisedLinear
from worker.row_kernels import norm_into, normed, rotate_into, rotated

_CAN_PUT = (torch.add, torch.mul)


def call_of(
    target: Callable[..., torch.Tensor], args: Sequence[Any], kwargs: Mapping[str, Any], result: torch.Tensor
) -> Call:
    """What puts `target(*args, **kwargs)` into `result`, which has its shape and strides."""
    if result.is_contiguous() and all(one.is_contiguous() for one in args if isinstance(one, torch.Tensor)):
        if target is call_layer and (by_kernel := _product(args[0], args[1], result)) is not None:
            return by_kernel
        if target is normed:
            return norm_into(args[0], args[1], args[2], result)
    if target is rotated:
        return rotate_into(args[0], args[1], args[2], result)
    if target in _CAN_PUT and all(isinstance(one, torch.Tensor) for one in args):
        return partial(target, **kwargs, out=result), tuple(args)
    return _put, (result, partial(target, *args, **kwargs))


def call_of_many(
    target: Callable[..., Sequence[torch.Tensor]],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    results: Sequence[torch.Tensor],
) -> Call:
    """What puts all that an operation gives into `results`."""
    return _put_all, (results, partial(target, *args, **kwargs))


def _product(x: torch.Tensor, forward: Any, result: torch.Tensor) -> Call | None:
    """By the kernel of the layer whose `forward` this is, if it has one."""
    layer = getattr(forward, "__self__", None)
    if isinstance(layer, PackedLinear) and isinstance(layer.weights, PanelWeights):
        return layer.weights.into(x, layer.bias, result)
    if isinstance(layer, QuantisedLinear) and isinstance(layer.matrix, CodedPanels) and layer.bias is None:
        return layer.matrix.into(x, result)
    return None


def _put(result: torch.Tensor, make: Callable[[], torch.Tensor]) -> None:
    result.copy_(make())


def _put_all(results: Sequence[torch.Tensor], make: Callable[[], Sequence[torch.Tensor]]) -> None:
    for result, made in zip(results, make(), strict=True):
        result.copy_(made)
