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
import mmap
from abc import ABC, abstractmethod
from typing import Self

import torch

from protocol.messages import KvPrecision

_LARGEST_GROUP = 32
_LARGEST_CODE = 127
_ALIGNMENT_BYTES = 64
"""Of each tensor: a cache line, and what vector instructions like."""
_TINY_BYTES = 16 * 1024
"""Of a block of one session: a few pages; the number of mappings that a process may have is limited, too."""
_LEAST = 1e-30
"""Taken for the largest of a group of zeros: they are divided by its scale."""


class KVStore(ABC):
    """Keys and values of one sequence."""

    dtype: torch.dtype
    """What is computed in."""
    tensors: tuple[torch.Tensor, ...]
    """(1, heads, capacity, ...) each."""

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
    """Keys and values in a float type."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, capacity: int, held_as: torch.dtype) -> None:
        """Empty, for keys and values that look like these."""
        self.dtype = keys.dtype
        shapes = [(*one.shape[:2], capacity, one.shape[3]) for one in (keys, values)]
        self.tensors = _buffers(keys, *((shape, held_as) for shape in shapes))

    def write(self, start: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Keep keys and values (1, heads, tokens, width) from position `start` on."""
        n_new = keys.shape[2]
        kept_keys, kept_values = self.tensors
        kept_keys.narrow(2, start, n_new).copy_(keys)
        kept_values.narrow(2, start, n_new).copy_(values)

    def read(self, end: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values before position `end`: views, if they are kept in what is computed in."""
        keys, values = self.tensors
        return keys.narrow(2, 0, end).to(self.dtype), values.narrow(2, 0, end).to(self.dtype)


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
    if device.type != "cpu" or n_bytes < _TINY_BYTES or not hasattr(mmap, "MAP_ANONYMOUS"):
        return torch.empty(n_bytes, dtype=torch.uint8, device=device)
    try:
        memory = mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as exc:
        raise MemoryError(f"no memory for {n_bytes:,} bytes of a key-value cache") from exc
    return torch.frombuffer(memory, dtype=torch.uint8)
