"""A tensor of a model file: read when it is asked for, and knows where it is from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class FileTensor:
    """Does what safetensors' slice of the tensor does, which is all that transformers asks of it."""

    file: str
    """The file's name: in a worker's cache its SHA-256."""
    name: str
    """In the file."""
    stored: Any
    """safetensors' slice."""

    @property
    def origin(self) -> FileTensor:
        """Itself; of an encoded tensor the bytes."""
        return self

    def get_shape(self) -> list[int]:
        """Its sizes."""
        shape: list[int] = self.stored.get_shape()
        return shape

    def get_dtype(self) -> str:
        """The name of its type, as safetensors has it."""
        dtype: str = self.stored.get_dtype()
        return dtype

    def __getitem__(self, index: Any) -> torch.Tensor:
        """Read it."""
        tensor: torch.Tensor = self.stored[index]
        return tensor


def file_tensors(handle: Any, file: str) -> dict[str, FileTensor]:
    """All tensors of an open safetensors file of this name; they can be read as long as it is open."""
    return {name: FileTensor(file=file, name=name, stored=handle.get_slice(name)) for name in handle.keys()}  # noqa: SIM118
