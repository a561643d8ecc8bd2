"""What a model's config says: whether Brigade can run it, and the numbers that the manifest holds.

Only transformers' own classes count: code that a repository brings along is never run.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from coordinator.packing.encoders import CONFIG_ERRORS, encoder_class_name, is_encoder, is_encoder_type
from coordinator.packing.safetensors_source import checked_path, read_small_file
from protocol.errors import InvalidRequestError, UntrustedFileError
from protocol.ids import MAX_BLOCKS
from protocol.manifest import MAX_AUXILIARY_FILE_BYTES, ModelKind

CONFIG_FILE = "config.json"
DEFAULT_CONTEXT_LENGTH = 2048
"""For models without a position limit in their config (BLOOM was trained on 2048)."""
_CONTEXT_NAMES = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "n_ctx",
    "max_sequence_length",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelNumbers:
    """The part of a manifest that the config decides. `notes` say what was assumed."""

    architecture: str
    kind: ModelKind
    model_type: str
    n_blocks: int
    hidden_size: int
    vocab_size: int
    context_length: int
    kv_elements_per_token: int
    ties_embeddings: bool
    notes: tuple[str, ...]


def read_config(folder: Path, *, link_root: Path) -> tuple[PreTrainedConfig, dict[str, Any]]:
    """The config of the model in `folder`, as transformers understands it and as it is written.

    Raises:
        InvalidRequestError: there is none, or the model can't be run; says why and what to do.
        UntrustedFileError: it isn't a JSON object.
    """
    path = checked_path(folder, CONFIG_FILE, link_root=link_root)
    try:
        raw = json.loads(read_small_file(path, limit=MAX_AUXILIARY_FILE_BYTES))
    except (ValueError, RecursionError) as exc:
        raise UntrustedFileError(f"{CONFIG_FILE} is not JSON: {exc}") from exc
    if not isinstance(raw, dict):
        raise UntrustedFileError(f"{CONFIG_FILE} is not a JSON object")
    _check_quantization(raw)
    model_type = raw.get("model_type")
    if not isinstance(model_type, str):
        raise _unsupported(raw)
    if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not is_encoder_type(model_type):
        raise _unsupported(raw)
    try:
        # infinities, which JSON lacks, are tagged; the library reads them so, too, and has no public name for it
        config = AutoConfig.for_model(**PreTrainedConfig._decode_special_floats(raw))  # noqa: SLF001
    except (*CONFIG_ERRORS, StrictDataclassError) as exc:
        raise InvalidRequestError(f"{CONFIG_FILE} can't be used: {type(exc).__name__}: {str(exc)[:500]}") from exc
    return config, raw


def model_numbers(config: PreTrainedConfig) -> ModelNumbers:
    """Check that `config` is of a causal text model or of an encoder, and take the manifest's numbers from it.

    Raises:
        InvalidRequestError: it is of neither, or a number is missing or out of range.
    """
    notes: list[str] = []
    takes_all_at_once = is_encoder(config)
    if _has_parts(config):
        raise _unsupported(config.to_dict())
    try:
        return ModelNumbers(
            architecture=encoder_class_name(config) if takes_all_at_once else _architecture(config),
            kind="encoder" if takes_all_at_once else "decoder",
            model_type=config.model_type,
            n_blocks=_number(config, "num_hidden_layers", most=MAX_BLOCKS),
            hidden_size=_number(config, "hidden_size"),
            vocab_size=_number(config, "vocab_size"),
            context_length=_context_length(config, notes),
            kv_elements_per_token=0 if takes_all_at_once else kv_elements_per_token(config),
            ties_embeddings=not takes_all_at_once and bool(getattr(config, "tie_word_embeddings", False)),
            notes=tuple(notes),
        )
    except (TypeError, ValueError, ArithmeticError, AttributeError) as exc:
        raise InvalidRequestError(f"{CONFIG_FILE} can't be used: {exc}") from exc


def _has_parts(config: PreTrainedConfig) -> bool:
    """Whether it is of several models (for text, images, sound), of which the one for text is only a part."""
    if config.is_encoder_decoder:
        return False
    others = ("vision_config", "audio_config")
    return (
        config.get_text_config() is not config
        or any(getattr(config, name, None) is not None for name in others)
        or (not hasattr(config, "num_hidden_layers") and bool(_part_names(config.to_dict())))
    )


def _part_names(raw: dict[str, Any]) -> list[str]:
    return sorted(key for key, value in raw.items() if key.endswith("_config") and isinstance(value, dict))


def kv_elements_per_token(config: PreTrainedConfig) -> int:
    """Elements of keys and values together that transformers caches for one token in one block.

    Where blocks differ this is the largest. Latent attention (MLA) is cached compressed, once for all
    heads, and so is the key of its indexer where there is one.
    """
    if config.is_heterogeneous:
        return max(map(_kv_elements, config.per_layer_config))
    return _kv_elements(config)


def _kv_elements(config: PreTrainedConfig) -> int:
    n_heads = _largest(getattr(config, "num_attention_heads", None))
    if not n_heads:
        return 2 * int(config.hidden_size)
    if latent_width := _largest(getattr(config, "kv_lora_rank", None)):
        extra = ("qk_rope_head_dim", "index_head_dim")
        return latent_width + sum(_largest(getattr(config, name, None)) for name in extra)
    head_width = max(
        _largest(getattr(config, "head_dim", None)) or int(config.hidden_size) // n_heads,
        _largest(getattr(config, "global_head_dim", None)),
    )
    value_width = _largest(getattr(config, "v_head_dim", None)) or head_width
    return _n_kv_heads(config, n_heads) * (head_width + value_width)


def _n_kv_heads(config: PreTrainedConfig, n_heads: int) -> int:
    if getattr(config, "new_decoder_architecture", False):  # Falcon caches these expanded to every head
        return n_heads
    if getattr(config, "multi_query", False):
        return 1
    for name in ("num_key_value_heads", "num_kv_heads"):
        if n_kv_heads := _largest(getattr(config, name, None)):
            return n_kv_heads
    return n_heads


def _largest(value: object) -> int:
    """The number itself, the largest of a list of one a layer, or 0 if there is none."""
    if isinstance(value, list | tuple):
        return max((int(each) for each in value if each), default=0)
    return int(value) if isinstance(value, int) else 0


def _number(config: PreTrainedConfig, name: str, *, most: int = 2**31 - 1) -> int:
    value = getattr(config, name, None)
    if not isinstance(value, int) or not 1 <= value <= most:
        raise InvalidRequestError(f"the config's {name} is {value!r}; it must be a number from 1 to {most}")
    return value


def _context_length(config: PreTrainedConfig, notes: list[str]) -> int:
    for name in _CONTEXT_NAMES:
        value = getattr(config, name, None)
        if isinstance(value, int) and 0 < value < 2**31:
            return value
    notes.append(f"the config names no longest context; {DEFAULT_CONTEXT_LENGTH} tokens are assumed")
    return DEFAULT_CONTEXT_LENGTH


def _architecture(config: PreTrainedConfig) -> str:
    """The causal class of the config's model type, unless the checkpoint says that it is something else."""
    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type, "")
    if not name.endswith(("ForCausalLM", "LMHeadModel")) or config.is_encoder_decoder:
        raise _unsupported(config.to_dict())
    # A checkpoint of the bare base model (GPT2Model) is the causal model without a head of its own.
    base = name.removesuffix("ForCausalLM").removesuffix("LMHeadModel") + "Model"
    named = _class_name(config.to_dict())
    if named is not None and named.lower() not in (name.lower(), base.lower()):
        raise _unsupported(config.to_dict())
    return name


def _class_name(raw: dict[str, Any]) -> str | None:
    """The model class that the config names, if any."""
    names = raw.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else None


def _check_quantization(raw: dict[str, Any]) -> None:
    settings = raw.get("quantization_config") or raw.get("compression_config")
    if settings:
        kind = settings.get("quant_method", "unknown") if isinstance(settings, dict) else "unknown"
        raise InvalidRequestError(
            f"the checkpoint is quantised ({str(kind)[:40]}), which can't be split into blocks; use the float16 or "
            "bfloat16 version of the model (workers quantise by themselves), or a GGUF file"
        )


def _unsupported(raw: dict[str, Any]) -> InvalidRequestError:
    model_type, named = str(raw.get("model_type"))[:60], (_class_name(raw) or "not given")[:80]
    if raw.get("auto_map"):
        return InvalidRequestError(
            f"the model ({model_type}) needs code from the Hub (trust_remote_code), which Brigade never runs; "
            "use a version of it that transformers has a class for"
        )
    return InvalidRequestError(
        f"a model of type {model_type} (class {named}) {_what_it_is(raw)}; Brigade runs decoder-only language "
        "models (...ForCausalLM) and encoder-only ones (BERT and its kin)"
    )


def _what_it_is(raw: dict[str, Any]) -> str:
    if raw.get("is_encoder_decoder") is True:
        return "is an encoder-decoder, or the decoder of one"
    if parts := _part_names(raw):
        return f"has several parts ({', '.join(parts)[:80]}): it takes more than text, or goes with another model"
    return "is neither a causal text model nor an encoder that transformers has a class for"
