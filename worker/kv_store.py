"""The memory of one block's keys and values, in place: as they are, in another float type, or as codes of 8 bits.

Codes have a scale for each 32 values of a position and head. The outliers of keys sit in a few channels (KIVI, Liu
et al. 2024), so a scale for each channel would be better; but it spans many positions, which can't be written one
by one and rolled back. Groups of neighbouring channels keep an outlier from coarsening the whole head.

What was just written is read as it is kept, like everything before it: so it makes no difference in which chunks a
text was run, what was rolled back, or who else had run its beginning.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Self

import torch

from protocol.messages import KvPrecision
from worker.heap import mapped
from worker.row_kernels import can_keep, keep_one_each

_LARGEST_GROUP = 32
_LARGEST_CODE = 127
_ALIGNMENT_BYTES = 64
"""Of each tensor: a cache line, and what vector instructions like."""
_TINY_BYTES = 16 * 1024
"""Of a block of one session: a few pages; the number of mappings that a process may have is limited, too."""
_KEYS_AND_VALUES = [1, 1]
"""Of the first dimension of a tensor that holds both."""
_LEAST = 1e-30
"""Taken for the largest of a group of zeros: they are divided by its scale."""


class KVStore(ABC):
    """Keys and values of one sequence."""

    dtype: torch.dtype
    """What is computed in."""
    tensors: tuple[torch.Tensor, ...]
    """(1 or 2, heads, capacity, ...) each."""

    @abstractmethod
    def write(self, start: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Keep keys and values (1, heads, tokens, width) from position `start` on."""

    @abstractmethod
    def read(self, end: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values before position `end`; they may be views, valid until the next write."""

    def resized(self, capacity: int, n_kept: int) -> Self:
        """A store for so many positions, with memory of its own, that begins with the first `n_kept` of this."""
        other = copy.copy(self)
        shapes = [(*old.shape[:2], capacity, *old.shape[3:]) for old in self.tensors]
        wanted = [(shape, old.dtype) for shape, old in zip(shapes, self.tensors, strict=True)]
        other.tensors = _buffers(self.tensors[0], *wanted)
        for new, old in zip(other.tensors, self.tensors, strict=True):
            new.narrow(2, 0, n_kept).copy_(old.narrow(2, 0, n_kept))
        return other

    @property
    def n_bytes(self) -> int:
        """All that is allocated."""
        return sum(tensor.nbytes for tensor in self.tensors)


class FloatStore(KVStore):
    """Keys and values in a float type; in one tensor, (2, heads, capacity, width), where their shapes are equal."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, capacity: int, held_as: torch.dtype) -> None:
        """Empty, for keys and values that look like these."""
        self.dtype = keys.dtype
        both = (2, *keys.shape[1:]) if keys.shape == values.shape else None
        shapes = [both] if both is not None else [keys.shape, values.shape]
        wanted = [((*shape[:2], capacity, shape[3]), held_as) for shape in shapes]
        self.tensors = _buffers(keys, *wanted)
        self.is_joined = both is not None

    def write(self, start: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Keep keys and values (1, heads, tokens, width) from position `start` on."""
        if self.is_joined and keys.shape[2] == 1 and can_keep(self.tensors[0], keys, values):
            keep_one_each(self.tensors, [start], keys, values)
            return
        for place, new in zip(self._parts(start, keys.shape[2]), (keys, values), strict=True):
            place.copy_(new)

    def read(self, end: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values before position `end`: views, if they are kept in what is computed in."""
        keys, values = self._parts(0, end)
        if keys.dtype is self.dtype:
            return keys, values
        return keys.to(self.dtype), values.to(self.dtype)

    def _parts(self, start: int, n_positions: int) -> Sequence[torch.Tensor]:
        """Views of the keys and of the values there, (1, heads, n_positions, width) each."""
        if self.is_joined:
            return self.tensors[0].narrow(2, start, n_positions).split_with_sizes(_KEYS_AND_VALUES)
        return [tensor.narrow(2, start, n_positions) for tensor in self.tensors]


class CodeStore(KVStore):
    """Codes of keys and values in one tensor, (1, heads, capacity, groups, values of a group), and their scales.

    The values' heads follow the keys': both are read at once, and lie as attention reads them fastest. Where their
    widths differ (DeepSeek's latents, of one head), they lie side by side instead.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, capacity: int) -> None:
        """Empty, for keys and values that look like these."""
        self.dtype = keys.dtype
        widths = keys.shape[3], values.shape[3]
        self._joined_dim = 1 if widths[0] == widths[1] else 3
        self._sizes = [keys.shape[self._joined_dim], values.shape[self._joined_dim]]
        group = max(n for n in range(1, _LARGEST_GROUP + 1) if not any(width % n for width in widths))
        _, n_heads, _, width = torch.cat((keys, values), self._joined_dim).shape
        shape = (1, n_heads, capacity, width // group)
        self.tensors = _buffers(keys, ((*shape, group), torch.int8), ((*shape, 1), torch.bfloat16))

    def write(self, start: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Keep keys and values (1, heads, tokens, width) from position `start` on."""
        n_new = keys.shape[2]
        codes, scales = (tensor.narrow(2, start, n_new) for tensor in self.tensors)
        groups = torch.cat((keys, values), self._joined_dim).float().view(codes.shape)
        scales.copy_(groups.abs().amax(-1, keepdim=True).clamp_min_(_LEAST).mul_(1 / _LARGEST_CODE))
        codes.copy_(groups.div_(scales).round_())  # by the scale as rounded, so that the code makes up for that

    def read(self, end: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values before position `end`, made of their codes."""
        codes, scales = (tensor.narrow(2, 0, end) for tensor in self.tensors)
        joined = codes.to(self.dtype).mul_(scales).flatten(3)
        keys, values = joined.split_with_sizes(self._sizes, self._joined_dim)
        return keys, values


def new_store(keys: torch.Tensor, values: torch.Tensor, capacity: int, held_as: KvPrecision | None) -> KVStore:
    """An empty store for keys and values that look like these, (1, heads, tokens, width); None: as they are."""
    if held_as == "int8":
        return CodeStore(keys, values, capacity)
    return FloatStore(keys, values, capacity, keys.dtype if held_as is None else getattr(torch, held_as))


def write_together(
    stores: Sequence[KVStore],
    starts: Sequence[int],
    n_new: Sequence[int],
    keys: torch.Tensor,
    values: torch.Tensor,
) -> list[torch.Tensor]:
    """Keep keys and values (1, heads, sum of `n_new`, width): of each store as many positions from its start on.

    Where each store has both in one tensor, as floats, those tensors: (2, heads, capacity, width); else none.
    """
    joined = [store.tensors[0] for store in stores if isinstance(store, FloatStore) and store.is_joined]
    if len(joined) == len(stores):
        if max(n_new) == 1 and all(can_keep(both, keys, values) for both in joined):
            keep_one_each(joined, starts, keys, values)
            return joined
        both = torch.cat((keys, values))  # (2, heads, sum of n_new, width)
        places = [tensor.narrow(2, start, n) for tensor, start, n in zip(joined, starts, n_new, strict=True)]
        torch._foreach_copy_(places, both.split_with_sizes(n_new, 2))
        return joined
    shares = zip(keys.split_with_sizes(n_new, 2), values.split_with_sizes(n_new, 2), strict=True)
    for store, start, share in zip(stores, starts, shares, strict=True):
        store.write(start, *share)
    return []


def _buffers(like: torch.Tensor, *wanted: tuple[tuple[int, ...], torch.dtype]) -> tuple[torch.Tensor, ...]:
    """Tensors that aren't filled, of these shapes and types, one after the other on the device of `like`.

    On the CPU they are mapped unless they are tiny: their pages are taken when they are written to, and go back to
    the system as soon as the tensors do. What is freed in glibc's heap mostly stays there.
    """
    sizes = [
        -(-math.prod(shape) * dtype.itemsize // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES for shape, dtype in wanted
    ]
    memory = _memory(like.device, sum(sizes))
    return tuple(
        share[: math.prod(shape) * dtype.itemsize].view(dtype).view(shape)
        for share, (shape, dtype) in zip(memory.split_with_sizes(sizes), wanted, strict=True)
    )


def _memory(device: torch.device, n_bytes: int) -> torch.Tensor:
    if device.type != "cpu" or n_bytes < _TINY_BYTES:
        return torch.empty(n_bytes, dtype=torch.uint8, device=device)
    try:
        memory = mapped(n_bytes)
    except OSError as exc:
        raise MemoryError(f"no memory for {n_bytes:,} bytes of a key-value cache") from exc
    return torch.frombuffer(memory, dtype=torch.uint8)
