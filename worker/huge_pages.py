"""Keep weights in memory pages of 2 MB, where the system gives such pages to who asks for them (Linux).

A step reads every weight once. With pages of 4 KB the processor looks up an address every 4 KB, and stops reading
ahead there; on a virtual machine a look-up is expensive. Products of one row take 0.84 to 0.89 of the time with
large pages (docs/decisions/0009).
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections import Counter
from collections.abc import Iterable

import torch
from torch import nn

from worker.heap import give_back_free_memory, mapped

_PAGE_BYTES = 2 * 2**20
_MADV_COLLAPSE = 25
"""Linux's number for it, which Python doesn't know yet."""
_TRIM_BYTES = 256 * 2**20
"""Moved at most before the memory that is free now goes back to the system: glibc would keep it until the end."""
_ALIGNMENT_BYTES = 64
"""Of each tensor: a cache line, and what vector instructions like."""


@torch.no_grad()
def move_to_huge_pages(model: nn.Module) -> int:
    """Move the model's parameters and buffers on the CPU; the number of bytes moved.

    Values, shapes, strides and ties stay as they are. A little at a time is held twice. Where there are no such
    pages the weights lie in ordinary ones, as before.
    """
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return 0
    tensors = _movable(model)
    n_bytes = sum(map(_room, tensors))
    if n_bytes < _PAGE_BYTES:
        return 0
    memory = mapped(n_bytes + _PAGE_BYTES)  # pages are taken when they are written
    if sys.platform != "win32":
        memory.madvise(mmap.MADV_HUGEPAGE)
    arena = torch.frombuffer(memory, dtype=torch.uint8)
    start = -arena.data_ptr() % _PAGE_BYTES
    n_left_behind = 0
    for tensor in tensors:
        share = arena[start : start + tensor.nbytes].view(tensor.dtype)
        tensor.data = share.as_strided(tensor.shape, tensor.stride()).copy_(tensor)
        start += _room(tensor)
        n_left_behind += tensor.nbytes
        if n_left_behind >= _TRIM_BYTES:
            give_back_free_memory()
            n_left_behind = 0
    give_back_free_memory()
    return n_bytes


def collapse_to_huge_pages(memory: Iterable[tuple[int, int]]) -> int:
    """Have the system put memory that is in use into large pages where it lies; the number of bytes asked for.

    For what can't be moved: `memory` has address and size of each piece. Memory in between may come along. An older
    system (Linux before 6.1) does it later, of its own accord, or never; nothing else changes.
    """
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return 0
    madvise = ctypes.CDLL(None).madvise
    n_bytes = 0
    for start, end in _merged(memory):
        first, last = -(-start // _PAGE_BYTES) * _PAGE_BYTES, end // _PAGE_BYTES * _PAGE_BYTES
        if first < last:
            for advice in (mmap.MADV_HUGEPAGE, _MADV_COLLAPSE):
                madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), advice)
            n_bytes += last - first
    return n_bytes


def _merged(memory: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Start and end of each run of pieces with less than a large page between them."""
    runs: list[tuple[int, int]] = []
    for address, size in sorted(memory):
        if runs and address - runs[-1][1] < _PAGE_BYTES:
            runs[-1] = (runs[-1][0], address + size)
        else:
            runs.append((address, address + size))
    return runs


def _movable(model: nn.Module) -> list[torch.Tensor]:
    """The ordinary tensors on the CPU that have memory of their own, without gaps; each once."""
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}.values()
    strided = [tensor for tensor in tensors if tensor.device.type == "cpu" and tensor.layout == torch.strided]
    n_users = Counter(tensor.untyped_storage().data_ptr() for tensor in strided)
    return [
        tensor
        for tensor in strided
        if tensor.nbytes == tensor.untyped_storage().nbytes() > 0
        and n_users[tensor.untyped_storage().data_ptr()] == 1
    ]


def _room(tensor: torch.Tensor) -> int:
    return -(-tensor.nbytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
