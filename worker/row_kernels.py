"""What is done with a few rows besides products and attention, by kernels of our own where torch's calls cost most.

The same bits as torch's operations, but for norms, which are rounded once (`worker.row_norm`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from worker.kernels import KINDS, UNIT, Call, are_there, kernels

_DTYPES = (torch.float32, torch.bfloat16)


def can_norm(scale: torch.Tensor) -> bool:
    """Whether rows as wide as `scale` (width,), and of its type, can be normed."""
    return scale.dtype in _DTYPES and scale.device.type == "cpu" and len(scale) % UNIT == 0 and are_there()


def normed(x: torch.Tensor, scale: torch.Tensor, eps: float) -> torch.Tensor:
    """Rows (..., width) by their root mean square, times the first `width` numbers of `scale`; without gaps.

    Raises:
        ValueError: `scale` isn't for such rows, or the kernel isn't.
    """
    x = x.contiguous()
    result = torch.empty_like(x)
    norm, arguments = norm_into(x, scale, eps, result)
    norm(*arguments)
    return result


def norm_into(x: torch.Tensor, scale: torch.Tensor, eps: float, result: torch.Tensor) -> Call:
    """What puts that into `result`; both without gaps.

    Raises:
        ValueError: likewise.
    """
    width = x.shape[-1]
    n_numbers = scale.shape[0]  # `len` of a tensor is Python code
    if x.dtype != scale.dtype or n_numbers < width or width % UNIT or not x.is_cpu:
        of = f"{tuple(x.shape)} {x.dtype} on {x.device}"
        raise ValueError(f"a norm of {n_numbers} numbers {scale.dtype} for rows {of}")
    return kernels().norm, (
        x.data_ptr(),
        scale.data_ptr(),
        result.data_ptr(),
        x.numel() // width,
        width,
        eps,
        KINDS[x.dtype],
        torch.get_num_threads(),
    )


def can_rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> bool:
    """Whether `rotated` is for tensors like these, which may be without values."""
    return (
        x.dtype in _DTYPES
        and x.device.type == "cpu"
        and x.dim() == 4
        and x.shape[0] == 1
        and x.stride(3) == 1
        and x.shape[3] % (2 * UNIT) == 0
        and all(one.dtype == x.dtype and one.shape == (1, 1, *x.shape[2:]) for one in (cos, sin))
        and cos.is_contiguous()
        and sin.is_contiguous()
        and are_there()
    )


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """`x * cos + roll(x) * sin`, by half a width, of `x` (1, heads, positions, width); it lies as `x` does."""
    result = torch.empty_like(x)
    rotate, arguments = rotate_into(x, cos, sin, result)
    rotate(*arguments)
    return result


def rotate_into(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, result: torch.Tensor) -> Call:
    """What puts that into `result`, of the same shape."""
    _, n_heads, n_positions, width = x.shape
    _, by_head, by_position, _ = x.stride()
    _, to_head, to_position, _ = result.stride()
    n_bytes = x.itemsize
    return kernels().rotate, (
        x.data_ptr(),
        cos.data_ptr(),
        sin.data_ptr(),
        result.data_ptr(),
        n_heads,
        n_positions,
        width,
        by_head * n_bytes,
        by_position * n_bytes,
        to_head * n_bytes,
        to_position * n_bytes,
        KINDS[x.dtype],
    )


def can_keep(both: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> bool:
    """Whether `keep_one_each` is for keys and values like these, and stores like `both`."""
    return (
        both.dtype == keys.dtype == values.dtype
        and both.device.type == keys.device.type == "cpu"
        and keys.stride(3) == values.stride(3) == 1
        and are_there()
    )


Room = tuple[int, int, int]
"""In what a session keeps, (2, heads, capacity, width) without gaps: its address, its capacity, and a position."""


def keep_one_each(
    joined: Sequence[torch.Tensor], positions: Sequence[int], keys: torch.Tensor, values: torch.Tensor
) -> None:
    """Keep one new position of each session, of keys and values (1, heads, n_sessions, width).

    `joined` have room for those of each, (2, heads, capacity, width) without gaps.

    Raises:
        ValueError: there is no such room.
    """
    keep, arguments = keep_from(keys, values)
    rooms = [room_in(both, position, keys) for both, position in zip(joined, positions, strict=True)]
    if len(rooms) != keys.shape[2]:
        raise ValueError(f"{len(rooms)} stores for keys {tuple(keys.shape)}")
    keep(*arguments, rooms)


def room_in(both: torch.Tensor, position: int, keys: torch.Tensor) -> Room:
    """Where a session keeps `position`.

    Raises:
        ValueError: it has no such room, or not for keys like these.
    """
    _, n_heads, capacity, width = both.shape
    if not 0 <= position < capacity:
        raise ValueError(f"position {position} of {capacity}")
    if (n_heads, width) != keys.shape[1::2] or both.dtype != keys.dtype:
        raise ValueError(f"a store {tuple(both.shape)} {both.dtype} for keys {tuple(keys.shape)} {keys.dtype}")
    return both.data_ptr(), capacity, position


def keep_from(keys: torch.Tensor, values: torch.Tensor) -> Call:
    """What keeps such a position of each session; it is still to be told where, a `Room` for each in a list.

    Raises:
        ValueError: they aren't alike.
    """
    _, n_heads, _, width = keys.shape
    if keys.shape != values.shape:
        raise ValueError(f"keys {tuple(keys.shape)} for values {tuple(values.shape)}")
    n_bytes = keys.itemsize
    return kernels().keep, (
        keys.data_ptr(),
        values.data_ptr(),
        keys.stride(1) * n_bytes,
        keys.stride(2) * n_bytes,
        values.stride(1) * n_bytes,
        values.stride(2) * n_bytes,
        n_heads,
        width * n_bytes,
    )


_library: Any = torch.library.Library("brigade", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define("norm(Tensor x, Tensor scale, float eps) -> Tensor")
_library.impl("norm", lambda x, _scale, _eps: torch.empty_like(x, memory_format=torch.contiguous_format), "Meta")
_library.impl("norm", normed, "CPU")
NORM = torch.ops.brigade.norm.default
"""`normed`, as graphs have it, and on tensors without values."""
