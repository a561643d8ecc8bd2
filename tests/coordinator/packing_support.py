"""Small checkpoints for packing tests, written by hand or by transformers."""

from __future__ import annotations

import json
import math
import resource
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import deserialize, safe_open
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedModel

from coordinator.file_store import FileStore
from coordinator.packing import PackedModel
from protocol.manifest import Manifest
from worker.file_tensors import file_tensors
from worker.gguf_blocks import with_encodings

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4,
    "intermediate_size": 6,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 8,
    "max_position_embeddings": 16,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def no_progress(step: str, n_done: int, n_total: int) -> None:
    pass


def llama_tensors() -> dict[str, bytes]:
    """A few bfloat16 tensors as names and bytes; not a whole Llama, which packing doesn't need."""
    names = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
    names += [f"model.layers.{index}.mlp.up_proj.weight" for index in range(2)]
    return {name: bytes((17 * n + k) % 256 for k in range(64)) for n, name in enumerate(names)}


def write_safetensors(path: Path, tensors: dict[str, bytes]) -> None:
    """(8, 4) bfloat16 each."""
    header: dict[str, Any] = {}
    offset = 0
    for name, data in tensors.items():
        header[name] = {"dtype": "BF16", "shape": [8, 4], "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(tensors.values()))


def write_tokenizer(folder: Path) -> None:
    Tokenizer(WordLevel({"a": 0, "b": 1, "<unk>": 2}, unk_token="<unk>")).save(str(folder / "tokenizer.json"))


def write_model(folder: Path, *, config: dict[str, Any] | None = None, tokenizer: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / "model.safetensors", llama_tensors())
    (folder / "config.json").write_text(json.dumps(CONFIG | (config or {})))
    if tokenizer:
        write_tokenizer(folder)
    return folder


def packed_tensors(store: FileStore, manifest: Manifest) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Every tensor of the model as it was stored: dtype, shape, bytes; read by the safetensors library."""
    found = {}
    for file in {file.sha256: file for file in (*manifest.blocks, *manifest.before, *manifest.after)}.values():
        for name, tensor in deserialize(store.path(file.sha256).read_bytes()):
            assert name not in found
            found[name] = (tensor["dtype"], tuple(tensor["shape"]), bytes(tensor["data"]))
    return found


def check_tensors(store: FileStore, packed: PackedModel, model: PreTrainedModel) -> None:
    """What was stored is every tensor of the whole model, bit by bit, and those that are tied only once."""
    expected = model.state_dict()
    found: dict[str, torch.Tensor] = {}
    for file in packed.manifest.all_files():
        if file.n_parameters:
            with safe_open(store.path(file.sha256), framework="pt") as stored:
                slices = with_encodings(file_tensors(stored, file.name))
                found |= {name: tensor[...] for name, tensor in slices.items()}
            assert file.n_parameters == sum(math.prod(tensor.get_shape()) for tensor in slices.values())
    tied = {name for name in expected if name not in dict(model.named_parameters())}
    assert found.keys() == expected.keys() - tied
    assert all(torch.equal(expected[name], tensor) for name, tensor in found.items())


@contextmanager
def files_limited_to(n_bytes: int) -> Iterator[None]:
    """As a full disk: a file that is written beyond `n_bytes` gives EFBIG."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
