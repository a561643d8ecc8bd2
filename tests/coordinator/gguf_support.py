"""Tiny GGUF files of several architectures, with random weights, as llama.cpp would lay them out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf.constants import GGMLQuantizationType
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations.ggml import GGUF_CONFIG_MAPPING
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

SETTINGS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "gemma2": {},
    "qwen3moe": {"num_experts": 2, "num_experts_per_tok": 1},
    "gpt2": {"tie_word_embeddings": False},
    "bloom": {},
    "starcoder2": {},
}
"""llama.cpp's architectures that a tiny file can be made of, and what their configs need besides `_COMMON`."""

_MODEL_TYPES = {"qwen3moe": "qwen3_moe"}
_COMMON = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "head_dim": 16,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10_000.0,
    "vocab_size": 32,
}
_TRANSPOSED = ("attn_qkv.weight", "ffn_down.weight", "ffn_up.weight", "attn_output.weight")
_SCALES_OF_K_QUANTS = {
    GGMLQuantizationType.Q2_K: (80, 84),
    GGMLQuantizationType.Q4_K: (0, 4),
    GGMLQuantizationType.Q5_K: (0, 4),
    GGMLQuantizationType.Q6_K: (208, 210),
}
"""The bytes of a block that are float16."""
TOKENS = [*"abcdefghijklmnopqrstuvwxyz", "ab", "bc", "Ġ", "<|endoftext|>", "<|user|>", "<unk>"]


def write_gguf(
    path: Path,
    architecture: str = "llama",
    *,
    encoding: GGMLQuantizationType = GGMLQuantizationType.F32,
    has_head: bool = True,
    has_tokenizer: bool = True,
    mix: Mapping[str, GGMLQuantizationType] | None = None,
    width: int = 64,
    extra: Mapping[str, int] | None = None,
) -> Path:
    """A GGUF file whose weights are random; the tensors of at least two dimensions are stored as `encoding`.

    Those whose names end as a key of `mix` are of its kind. `width` is the hidden size: 256 for K-quants.
    `extra` names tensors of one dimension that no model asks for, and their lengths.
    """
    model_type = _MODEL_TYPES.get(architecture, architecture)
    names = {hf: key for key, hf in GGUF_CONFIG_MAPPING[model_type].items() if hf is not None}
    sizes = {"hidden_size": width, "intermediate_size": width * 3 // 2, "head_dim": width // 4}
    settings = _COMMON | sizes | SETTINGS[architecture]
    config = AutoConfig.for_model(model_type)
    stated = {key: getattr_or(settings, hf, config) for hf, key in names.items()}
    stated = {key: value for key, value in stated.items() if value is not None}
    config = AutoConfig.for_model(
        model_type, **{names_hf: stated[key] for names_hf, key in names.items() if key in stated}
    )
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    for key, value in stated.items():
        add = writer.add_float32 if isinstance(value, float) else writer.add_uint32
        add(f"{architecture}.{key}", value)
    if has_tokenizer:
        _add_tokenizer(writer)
    for name, shape in _tensor_shapes(architecture, config).items():
        if name != "output.weight" or has_head:
            kinds = [kind for end, kind in (mix or {}).items() if name.endswith(end)]
            _add_tensor(writer, name, shape, kinds[0] if kinds else encoding)
    for name, length in (extra or {}).items():
        _add_tensor(writer, name, (length,), encoding)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def getattr_or(settings: dict[str, Any], name: str, config: Any) -> Any:
    """A setting under any of the spellings that the config class knows it by."""
    spellings = {value: key for key, value in config.attribute_map.items()}
    value = settings.get(name, settings.get(spellings.get(name, "")))
    return value if isinstance(value, int | float) else None


def _tensor_shapes(architecture: str, config: Any) -> dict[str, tuple[int, ...]]:
    config.tie_word_embeddings = False
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=config.to_dict())
    state = model.state_dict()
    shapes = {}
    for name, hf_name in get_gguf_hf_weights_map(model, processor).items():
        if hf_name not in state:
            continue
        shape = tuple(state[hf_name].shape)
        if architecture == "gpt2" and name.endswith(_TRANSPOSED):
            shape = shape[::-1]
        if "gate_up_proj" in hf_name:
            shape = (shape[0], shape[1] // 2, shape[2])
        shapes[f"{name}.weight" if name.endswith("_exps") else name] = shape
    return shapes


def _add_tensor(writer: gguf.GGUFWriter, name: str, shape: tuple[int, ...], encoding: GGMLQuantizationType) -> None:
    values = np.random.default_rng(len(name)).normal(size=shape).astype(np.float32)
    if len(shape) < 2 or shape[-1] % 32:
        writer.add_tensor(name, values)
    elif encoding in _SCALES_OF_K_QUANTS:
        writer.add_tensor(name, _k_quants(shape, encoding), raw_dtype=encoding)
    else:
        writer.add_tensor(name, gguf.quantize(values, encoding), raw_dtype=encoding)


def _k_quants(shape: tuple[int, ...], encoding: GGMLQuantizationType) -> np.ndarray[Any, Any]:
    """Random bytes, since the library can only read these encodings, with scales that are small numbers."""
    generator, places = np.random.default_rng(shape[0]), _SCALES_OF_K_QUANTS[encoding]
    blocks = generator.integers(0, 256, gguf.quant_shape_to_byte_shape(shape, encoding), dtype=np.uint8)
    blocks = blocks.reshape(-1, gguf.GGML_QUANT_SIZES[encoding][1])
    scales = generator.uniform(0.001, 0.01, (len(blocks), len(range(*places)) // 2)).astype(np.float16)
    blocks[:, slice(*places)] = scales.view(np.uint8)
    return blocks.reshape(gguf.quant_shape_to_byte_shape(shape, encoding))


def _add_tokenizer(writer: gguf.GGUFWriter) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([1] * 29 + [3, 3, 3])
    writer.add_token_merges(["a b", "b c"])
    writer.add_bos_token_id(29)
    writer.add_eos_token_id(30)
    writer.add_chat_template("{{ messages[0].content }}")
