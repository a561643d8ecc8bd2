"""A model's source, opened and checked: its tensors, what its config says, its small files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from coordinator.packing.decoders import check_decoder
from coordinator.packing.embedding_files import embedding_files
from coordinator.packing.encoders import encoder_tensors
from coordinator.packing.model_config import CONFIG_FILE, ModelNumbers, model_numbers, read_config
from coordinator.packing.safetensors_source import SafetensorsSource
from coordinator.packing.sources import FolderSource, GgufFileSource
from coordinator.packing.tokenizer_files import canonical_json, folder_files, generation_config, gguf_files
from protocol.model_files.gguf_source import GgufSource
from protocol.model_files.tensors import TensorInfo, TensorSource


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedSource:
    """A source that has been checked: its tensors, what its config says, its small files."""

    tensors: TensorSource
    used: Mapping[str, TensorInfo]
    """Those of the tensors that the model needs."""
    numbers: ModelNumbers
    auxiliary: dict[str, bytes]
    notes: tuple[str, ...]


def open_source(source: FolderSource | GgufFileSource, stack: ExitStack) -> OpenedSource:
    """Open and check it; `stack` closes its files.

    Raises:
        RequestError: the source can't be used; the message says why and what to use instead.
    """
    if isinstance(source, GgufFileSource):
        return _open_gguf(source.path)
    config, raw = read_config(source.folder, link_root=source.link_root)
    numbers = checked_numbers(config)
    tensors = stack.enter_context(SafetensorsSource(source.folder, link_root=source.link_root))
    auxiliary = folder_files(source.folder, link_root=source.link_root)
    auxiliary |= embedding_files(source.folder, link_root=source.link_root)
    raw = {key: value for key, value in raw.items() if key != "auto_map"}
    auxiliary[CONFIG_FILE] = canonical_json(raw | {"architectures": [numbers.architecture]})
    opened = OpenedSource(
        tensors=tensors, used=tensors.tensors, numbers=numbers, auxiliary=auxiliary, notes=numbers.notes
    )
    return _as_encoder(opened, config) if numbers.kind == "encoder" else opened


def checked_numbers(config: PreTrainedConfig) -> ModelNumbers:
    """The numbers of a model that can be run.

    Raises:
        InvalidRequestError: it can't be; says why and what to do.
    """
    numbers = model_numbers(config)
    if numbers.kind == "decoder":
        check_decoder(config)
    return numbers


def _as_encoder(opened: OpenedSource, config: PreTrainedConfig) -> OpenedSource:
    """Without the tensors of heads, and with no longer a context than there are positions."""
    found = encoder_tensors(config, opened.used)
    notes = list(opened.notes)
    if found.left_out:
        notes.append(f"{len(found.left_out)} tensors of heads were left out, among them {found.left_out[0]}")
    numbers = opened.numbers
    if found.most_positions is not None and found.most_positions < numbers.context_length:
        numbers = replace(numbers, context_length=found.most_positions)
    used = {name: info for name, info in opened.used.items() if name in found.used}
    return replace(opened, used=used, numbers=numbers, notes=tuple(notes))


def _open_gguf(path: Path) -> OpenedSource:
    tensors = GgufSource(path)
    numbers = checked_numbers(tensors.config)
    auxiliary = gguf_files(path) if "tokenizer.ggml.tokens" in tensors.header.array_lengths else {}
    auxiliary[CONFIG_FILE] = _gguf_config(tensors, numbers)
    auxiliary.setdefault("generation_config.json", generation_config(json.loads(auxiliary[CONFIG_FILE])))
    notes = (*numbers.notes, *tensors.notes())
    return OpenedSource(tensors=tensors, used=tensors.tensors, numbers=numbers, auxiliary=auxiliary, notes=notes)


def _gguf_config(source: GgufSource, numbers: ModelNumbers) -> bytes:
    """config.json of a GGUF source, without what names this machine or transformers' version."""
    settings: dict[str, Any] = json.loads(source.config.to_json_string())
    kept = {
        key: value for key, value in settings.items() if not key.startswith("_") and key != "transformers_version"
    }
    return canonical_json(kept | {"architectures": [numbers.architecture], "dtype": "float32"})
