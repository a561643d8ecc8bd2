"""A GGUF file as a source of tensors under the names, shapes and values that transformers gives them.

Matrices in an encoding that workers compute with stay in it, byte by byte, if all that transformers would do to
them is to put their rows into another order; whatever else is unpacked to float32.

Names and layouts are transformers' own work (its name map and the tensor processor of the architecture); unlike
transformers, one tensor is unpacked at a time, when it is asked for. What each tensor must look like comes from the
model built without memory (torch's meta device), so a file that doesn't fit its own description is refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from transformers.modeling_gguf_pytorch_utils import (
    TENSOR_PROCESSORS,
    TensorProcessor,
    get_gguf_hf_weights_map,
)

from protocol.errors import InvalidRequestError, UntrustedFileError
from protocol.ids import MAX_BLOCKS
from protocol.model_files.gguf_header import GgufHeader, GgufTensor, read_gguf, type_name
from protocol.model_files.quick_gguf import make_gguf_quick
from protocol.model_files.tensors import ENCODED_BYTES, PIECE_BYTES, TensorInfo

SUPPORTED_ARCHITECTURES = (
    "bloom", "falcon", "gemma2", "gemma3", "gpt2", "llama", "mistral", "nemotron", "phi3",
    "qwen2", "qwen2moe", "qwen3", "qwen3moe", "stablelm", "starcoder2",
)  # fmt: skip
"""llama.cpp's names of the causal, non-recurrent architectures that transformers reads tensor by tensor."""

_FLOATS = ("F32", "F16", "BF16")
"""Encodings that float32 holds as they are."""

_PARTS_OF_MATRICES = (".scale", ".bias")
"""Ends of the names of what is multiplied with a matrix' values (NVFP4) or added to its products."""

_STRETCH = "rope_freqs.weight"
"""By what Llama 3.1 and its successors divide their position frequencies; transformers' reader leaves it out."""

_READER_ERRORS = (
    ValueError, KeyError, TypeError, IndexError, AttributeError, ArithmeticError, RuntimeError, OSError,
    MemoryError, StrictDataclassError,
)  # fmt: skip
"""What the libraries raise on metadata that is well-formed but makes no sense."""


class GgufSource:
    """The tensors of the GGUF file at `path`, encoded as they are or as float32.

    Raises:
        UntrustedFileError: the file is malformed, or its tensors aren't those of the model that it describes.
        InvalidRequestError: an architecture or encoding that can't be read; lists those that can.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header: GgufHeader = read_gguf(path)
        _check_architecture(self.header, path)
        make_gguf_quick()
        self.config: PreTrainedConfig = _read_config(path)
        self._processor: TensorProcessor = _processor(self.header.architecture, self.config)
        present = frozenset(tensor.name for tensor in self.header.tensors)
        expected, names = _expected_tensors(self.config, self._processor, present)
        self._names = names
        self._origins: dict[str, list[GgufTensor]] = {}
        unused: list[str] = []
        for tensor in self.header.tensors:
            # Experts have no `.weight` in transformers' names, nor in the map; processors cut it off likewise.
            name = names.get(tensor.name) or names.get(tensor.name.removesuffix(".weight"))
            if name in expected:
                self._origins.setdefault(name, []).append(tensor)
            else:
                unused.append(tensor.name)
        self.left_out = tuple(unused)
        _check_unused(path, self.left_out)
        if missing := sorted(expected.keys() - self._origins.keys()):
            raise UntrustedFileError(
                f"{path.name} lacks {len(missing)} of the {len(expected)} tensors of the {self.config.model_type} "
                f"model that it describes, among them {', '.join(missing[:3])}"
            )
        self._rows = {
            name: rows for name in expected if (rows := self._kept_rows(name, expected[name])) is not None
        }
        self._tensors = {
            name: replace(info, dtype=type_name[self._origins[name][0].encoding]) if name in self._rows else info
            for name, info in expected.items()
        }
        self._data = np.memmap(path, mode="r", dtype=np.uint8)

    def notes(self) -> list[str]:
        """What the operator should know of what isn't in the model as it is in the file."""
        notes = []
        if others := [name for name in self.left_out if name != _STRETCH]:
            notes.append(f"tensors that the model doesn't use were left out: {', '.join(others[:5])}")
        if _STRETCH in self.left_out:
            notes.append(
                f"{_STRETCH} was left out, as transformers does: the model counts positions otherwise than its "
                "authors' does, and answers worse the longer the text; its safetensors version doesn't"
            )
        return notes + self._unpacked_notes()

    def _unpacked_notes(self) -> list[str]:
        given_up = [origins for name, origins in self._origins.items() if name not in self._rows]
        n_by_encoding = Counter(type_name[origin.encoding] for origins in given_up for origin in origins)
        counts = [f"{n} in {kind}" for kind, n in sorted(n_by_encoding.items()) if kind not in _FLOATS]
        if not counts:
            return []
        return [
            f"quantised tensors were unpacked to float32, 4 bytes a weight: {', '.join(counts)}; workers with int8 "
            f"or int4 round them once more. Only matrices in {', '.join(ENCODED_BYTES)} are kept as they are"
        ]

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor by its name in transformers."""
        return self._tensors

    def pieces(self, name: str) -> Iterator[memoryview]:
        """The tensor's encoded rows or float32 values. Holds this one tensor in memory, twice for a moment.

        Raises:
            UntrustedFileError: its size isn't what the model needs.
        """
        if name in self._rows:
            yield from self._encoded(name)
            return
        values = self._values(name)
        expected = self._tensors[name]
        if values.shape != expected.shape:
            raise UntrustedFileError(
                f"{self.path.name}: tensor {name} has a shape of {values.shape}, the model needs {expected.shape}"
            )
        flat = np.ascontiguousarray(values, dtype="<f4").reshape(-1).view(np.uint8)
        for start in range(0, flat.size, PIECE_BYTES):
            yield flat[start : start + PIECE_BYTES].data

    def _kept_rows(self, name: str, expected: TensorInfo) -> np.ndarray[Any, Any] | None:
        """The rows of the file's matrix in the order of the model's; None if the tensor can't stay encoded.

        Found out by having the processor rearrange a matrix of two columns that number the rows.
        """
        origins = self._origins[name]
        origin, n_rows = origins[0], expected.shape[0]
        is_matrix = len(expected.shape) == 2 and origin.shape == expected.shape
        if len(origins) > 1 or not is_matrix or type_name[origin.encoding] not in ENCODED_BYTES:
            return None
        numbers = np.arange(n_rows, dtype=np.float64)[:, None] + np.array([0.0, n_rows])
        try:
            result = self._processor.process(  # type: ignore[no-untyped-call]
                weights=numbers, name=origin.name, tensor_key_mapping=self._names, parsed_parameters={"tensors": {}}
            )
        except _READER_ERRORS:
            return None  # it looks at the columns too
        if result.name is None or result.weights.shape != numbers.shape:
            return None
        rows: np.ndarray[Any, Any] = result.weights[:, 0].astype(np.int64)
        is_order = np.array_equal(np.sort(rows), np.arange(n_rows)) and np.array_equal(
            result.weights, numbers[rows]
        )
        return rows if is_order else None

    def _encoded(self, name: str) -> Iterator[memoryview]:
        origin, rows = self._origins[name][0], self._rows[name]
        raw = self._data[origin.offset : origin.offset + origin.n_bytes].reshape(len(rows), -1)
        n_at_once = max(1, PIECE_BYTES // raw.shape[1])
        for start in range(0, len(rows), n_at_once):
            yield raw[rows[start : start + n_at_once]].reshape(-1).data

    def _values(self, name: str) -> np.ndarray[Any, Any]:
        """Unpack and rearrange what becomes the tensor; the halves of a merged one come from two places."""
        # The processor either returns the values or puts a torch tensor into `merged` itself.
        merged: dict[str, dict[str, torch.Tensor]] = {"tensors": {}}
        values: np.ndarray[Any, Any] | None = None
        try:
            for origin in self._origins[name]:
                result = self._processor.process(  # type: ignore[no-untyped-call]
                    weights=self._unpacked(origin),
                    name=origin.name,
                    tensor_key_mapping=self._names,
                    parsed_parameters=merged,
                )
                if result.name is not None:
                    values = result.weights
        except _READER_ERRORS as exc:
            raise UntrustedFileError(f"{self.path.name}: tensor {name} can't be unpacked: {exc}") from exc
        if values is None and name in merged["tensors"]:
            values = merged["tensors"][name].numpy()
        if values is None:
            raise UntrustedFileError(f"{self.path.name}: tensor {name} came out empty")
        return values

    def _unpacked(self, tensor: GgufTensor) -> np.ndarray[Any, Any]:
        raw = self._data[tensor.offset : tensor.offset + tensor.n_bytes]
        encoding = gguf.GGMLQuantizationType(tensor.encoding)
        if encoding in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16):
            typed = raw.view(np.float32 if encoding is gguf.GGMLQuantizationType.F32 else np.float16)
            return typed.reshape(tensor.shape).astype(np.float32)
        rows = raw.reshape(gguf.quant_shape_to_byte_shape(tensor.shape, encoding))
        with np.errstate(all="ignore"):  # what comes out as no number is found, and told, by whoever takes it
            return gguf.dequantize(rows, encoding)


def _check_architecture(header: GgufHeader, path: Path) -> None:
    if header.architecture not in SUPPORTED_ARCHITECTURES:
        raise InvalidRequestError(
            f"{path.name} holds a model of the architecture {header.architecture[:80]!r}; from GGUF these can be "
            f"read: {', '.join(SUPPORTED_ARCHITECTURES)}. Use the safetensors version of the model"
        )
    n_blocks = header.metadata.get(f"{header.architecture}.block_count")
    if not isinstance(n_blocks, int) or not 1 <= n_blocks <= MAX_BLOCKS:
        raise UntrustedFileError(f"{path.name}: block_count = {n_blocks!r} is not 1 to {MAX_BLOCKS}")
    known = {int(kind) for kind in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16)}
    known |= {int(kind) for kind in gguf.quants._type_traits}  # noqa: SLF001 - the library names them nowhere else
    for tensor in header.tensors:
        if tensor.encoding not in known:
            raise InvalidRequestError(
                f"{path.name}: tensor {tensor.name[:80]} is encoded as {type_name[tensor.encoding]}, which "
                f"can't be unpacked; these can: {', '.join(sorted(type_name[kind] for kind in known))}"
            )


def _check_unused(path: Path, names: Sequence[str]) -> None:
    """Refuse a file with parts of blocks that transformers' model has no place for, and would be wrong without."""
    lost = [name for name in names if name.startswith("blk.") and name.endswith(_PARTS_OF_MATRICES)]
    if lost:
        raise InvalidRequestError(
            f"{path.name} has {len(lost)} scales and biases that belong to its matrices and can't be applied, "
            f"among them {lost[0][:80]}; use another GGUF of the model, or its safetensors version"
        )


def _read_config(path: Path) -> PreTrainedConfig:
    try:
        config = AutoConfig.from_pretrained(
            str(path.parent), gguf_file=path.name, local_files_only=True, trust_remote_code=False
        )
    except _READER_ERRORS as exc:
        raise UntrustedFileError(f"{path.name}: its metadata don't describe a model: {exc}") from exc
    if not isinstance(config, PreTrainedConfig):
        raise UntrustedFileError(f"{path.name}: its metadata don't describe a model")
    return config


def _processor(architecture: str, config: PreTrainedConfig) -> TensorProcessor:
    kind: Callable[..., TensorProcessor] = TENSOR_PROCESSORS.get(architecture, TensorProcessor)
    return kind(config=_AttributeDict(config))


class _AttributeDict(dict[str, Any]):
    """A config as the dictionary that the processors ask, every spelling of a name included."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config.to_dict())
        for spelling in (*getattr(config, "attribute_map", {}), "num_attention_heads", "num_key_value_heads"):
            if hasattr(config, spelling):
                self[spelling] = getattr(config, spelling)


def _expected_tensors(
    config: PreTrainedConfig, processor: TensorProcessor, present: frozenset[str]
) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """The tensors that the model needs (tied ones once, unless the file has both), and GGUF to model names."""
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                config, trust_remote_code=False
            )
        names: dict[str, str] = get_gguf_hf_weights_map(model, processor)
    except (*_READER_ERRORS, NotImplementedError) as exc:
        raise UntrustedFileError(f"the metadata describe a model that can't be built: {exc}") from exc
    persistent = model.state_dict(keep_vars=True)
    seen: set[int] = set()
    expected: dict[str, TensorInfo] = {}
    stored = {names[gguf_name] for gguf_name in present & names.keys()}
    for name, tensor in persistent.items():
        if isinstance(tensor, torch.nn.Parameter) and (id(tensor) not in seen or name in stored):
            seen.add(id(tensor))
            expected[name] = TensorInfo(name=name, dtype="F32", shape=tuple(tensor.shape))
    return expected, names
