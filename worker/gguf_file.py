"""A GGUF file as a worker loads it: the model's config, and its tensors as safetensors files would hold them.

Matrices in an encoding that workers compute with keep their codes, as in packed models; all else is float32.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from protocol.errors import ConfigError
from worker.file_tensors import FileTensor

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from protocol.model_files.gguf_source import GgufSource
    from protocol.model_files.tensors import TensorInfo

_TORCH_DTYPES = {"U8": torch.uint8, "F32": torch.float32}


def is_gguf(path: Path) -> bool:
    """Whether this names such a file, by its ending."""
    return path.suffix.lower() == ".gguf"


class GgufFile:
    """The file at `path`, opened and checked once, which takes seconds with a large vocabulary."""

    def __init__(self, path: Path) -> None:
        """Open it.

        Raises:
            ConfigError: the packages that read such files aren't installed.
            UntrustedFileError: the file is malformed, or its tensors aren't those of the model that it describes.
            InvalidRequestError: an architecture or encoding that can't be read; lists those that can.
        """
        self.path = path
        self._source = _source(path)

    @property
    def config(self) -> PreTrainedConfig:
        """What it says of the model; the caller's own."""
        return copy.deepcopy(self._source.config)

    def tensors(self) -> dict[str, FileTensor]:
        """All its tensors by their stored names; each is unpacked when it is read."""
        stored = {name: info.stored for name, info in self._source.tensors.items()}
        return {
            info.name: FileTensor(
                file=self.path.name, name=info.name, stored=_Slice(source=self._source, name=name, stored_as=info)
            )
            for name, info in stored.items()
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Slice:
    """What safetensors gives of a tensor of a file, of one in a GGUF."""

    source: GgufSource
    name: str
    stored_as: TensorInfo

    def get_shape(self) -> list[int]:
        return list(self.stored_as.shape)

    def get_dtype(self) -> str:
        return self.stored_as.dtype

    def __getitem__(self, index: Any) -> torch.Tensor:
        data = bytearray()
        for piece in self.source.pieces(self.name):
            data += piece
        flat = torch.frombuffer(data, dtype=_TORCH_DTYPES[self.stored_as.dtype])
        return flat.view(self.stored_as.shape)[index]


def tensor_table(path: Path) -> tuple[dict[str, int], list[tuple[str, tuple[int, ...]]]]:
    """What the header says, without taking long: the architecture's whole numbers; tensors' encodings and shapes.

    Raises:
        ConfigError: the packages that read such files aren't installed.
        UntrustedFileError: the file is malformed.
        StorageError: it can't be read.
    """
    try:
        from protocol.model_files.gguf_header import read_gguf, type_name  # noqa: PLC0415 - packages that only this needs
    except ImportError as exc:
        raise _lacking(exc) from exc
    header = read_gguf(path)
    said = {key.partition(".")[2]: value for key, value in header.metadata.items() if isinstance(value, int)}
    return said, [(type_name[tensor.encoding], tensor.shape) for tensor in header.tensors]


def _source(path: Path) -> GgufSource:
    try:
        from protocol.model_files.gguf_source import GgufSource  # noqa: PLC0415 - packages that only this needs
    except ImportError as exc:
        raise _lacking(exc) from exc
    return GgufSource(path)


def _lacking(exc: ImportError) -> ConfigError:
    return ConfigError(
        f"reading a GGUF file needs packages that aren't installed ({exc.name}): pip install '.[packing]' in "
        "Brigade's folder"
    )
