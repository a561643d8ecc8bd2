"""Tiny random models of every architecture that Brigade claims, with every multiplier and cap off its default."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import transformers as hf
from safetensors import safe_open
from safetensors.torch import save_file

N_BLOCKS = 4
VOCAB_SIZE = 96
CONTEXT = 64
WINDOW = 8

_COMMON = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": N_BLOCKS,
    "num_attention_heads": 4,
    "vocab_size": VOCAB_SIZE,
    "max_position_embeddings": CONTEXT,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GQA = {**_COMMON, "num_key_value_heads": 2}
_SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
_ALTERNATING = ["sliding_attention", "full_attention"] * (N_BLOCKS // 2)


def _llama_scaled_rope() -> hf.PreTrainedConfig:
    rope = {
        "rope_type": "llama3",
        "rope_theta": 10_000.0,
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    }
    return hf.LlamaConfig(**_GQA, tie_word_embeddings=True, rope_parameters=rope)


def _qwen3_moe() -> hf.PreTrainedConfig:
    return hf.Qwen3MoeConfig(**_GQA, **_MOE, head_dim=8, num_experts=4, mlp_only_layers=[1], norm_topk_prob=True)


def _gemma2() -> hf.PreTrainedConfig:
    return hf.Gemma2Config(
        **_GQA,
        head_dim=8,
        sliding_window=WINDOW,
        layer_types=_ALTERNATING,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=1.5,
        query_pre_attn_scalar=20,
    )


def _gemma3() -> hf.PreTrainedConfig:
    types = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
    return hf.Gemma3TextConfig(**_GQA, head_dim=8, sliding_window=WINDOW, layer_types=types)


def _gpt2() -> hf.PreTrainedConfig:
    return hf.GPT2Config(
        n_embd=32,
        n_layer=N_BLOCKS,
        n_head=4,
        vocab_size=VOCAB_SIZE,
        n_positions=CONTEXT,
        scale_attn_by_inverse_layer_idx=True,
        **_SPECIAL,
    )


def _falcon(*, alibi: bool) -> hf.PreTrainedConfig:
    return hf.FalconConfig(
        hidden_size=32,
        num_hidden_layers=N_BLOCKS,
        num_attention_heads=4,
        vocab_size=VOCAB_SIZE,
        new_decoder_architecture=not alibi,
        num_kv_heads=2,
        alibi=alibi,
        **_SPECIAL,
    )


def _gpt_oss() -> hf.PreTrainedConfig:
    return hf.GptOssConfig(
        **_GQA,
        head_dim=8,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=WINDOW,
        layer_types=_ALTERNATING,
    )


def _granite() -> hf.PreTrainedConfig:
    return hf.GraniteConfig(
        **_GQA,
        embedding_multiplier=3.0,
        residual_multiplier=0.5,
        attention_multiplier=0.2,
        logits_scaling=4.0,
    )


def _deepseek_v3() -> hf.PreTrainedConfig:
    return hf.DeepseekV3Config(
        **_COMMON,
        **_MOE,
        num_key_value_heads=4,
        q_lora_rank=8,
        kv_lora_rank=8,
        qk_rope_head_dim=4,
        qk_nope_head_dim=8,
        v_head_dim=6,
        n_routed_experts=4,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
    )


def _opt(*, projected: bool) -> hf.PreTrainedConfig:
    return hf.OPTConfig(
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=N_BLOCKS,
        num_attention_heads=4,
        vocab_size=VOCAB_SIZE,
        max_position_embeddings=CONTEXT,
        word_embed_proj_dim=16 if projected else 32,
        **_SPECIAL,
    )


TINY_CONFIGS: dict[str, Callable[[], hf.PreTrainedConfig]] = {
    "llama": lambda: hf.LlamaConfig(**_GQA),
    "llama_wide_heads": lambda: hf.LlamaConfig(**_GQA, head_dim=32),  # as kernels of our own want them
    "llama_tied": _llama_scaled_rope,
    "qwen2": lambda: hf.Qwen2Config(
        **_GQA,
        use_sliding_window=True,
        sliding_window=WINDOW,
        layer_types=["full_attention", "full_attention", "sliding_attention", "sliding_attention"],
    ),
    "qwen3": lambda: hf.Qwen3Config(**_GQA, head_dim=8, tie_word_embeddings=True),
    "qwen3_moe": _qwen3_moe,
    "mistral": lambda: hf.MistralConfig(**_GQA, sliding_window=WINDOW),
    "mixtral": lambda: hf.MixtralConfig(**_GQA, num_local_experts=4, sliding_window=WINDOW),
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "phi3": lambda: hf.Phi3Config(**_GQA, sliding_window=WINDOW, partial_rotary_factor=0.5),
    "olmo2": lambda: hf.Olmo2Config(**_GQA),
    "gpt2": _gpt2,
    "gpt_neox": lambda: hf.GPTNeoXConfig(**_COMMON, rotary_pct=0.5),
    "bloom": lambda: hf.BloomConfig(hidden_size=32, n_layer=N_BLOCKS, n_head=4, vocab_size=VOCAB_SIZE, **_SPECIAL),
    "falcon": lambda: _falcon(alibi=False),
    "falcon_alibi": lambda: _falcon(alibi=True),
    "gpt_oss": _gpt_oss,
    "cohere": lambda: hf.CohereConfig(**_GQA, logit_scale=0.3, use_qk_norm=True),
    "granite": _granite,
    "smollm3": lambda: hf.SmolLM3Config(**_GQA, no_rope_layers=[1, 0, 1, 0]),
    "deepseek_v3": _deepseek_v3,
    "opt": lambda: _opt(projected=False),
    "opt_projected": lambda: _opt(projected=True),
}
"""By a short name; called, so that nobody shares a config that a test changes."""


TINY_ENCODERS: dict[str, Callable[[], hf.PreTrainedConfig]] = {
    "bert": lambda: hf.BertConfig(**_COMMON),
    "roberta": lambda: hf.RobertaConfig(**{**_COMMON, "pad_token_id": 1, "bos_token_id": 0}),
    "distilbert": lambda: hf.DistilBertConfig(
        dim=32,
        hidden_dim=48,
        n_layers=N_BLOCKS,
        n_heads=4,
        vocab_size=VOCAB_SIZE,
        max_position_embeddings=CONTEXT,
        pad_token_id=0,
    ),
    "modernbert": lambda: hf.ModernBertConfig(
        **_COMMON, local_attention=WINDOW, global_attn_every_n_layers=3, cls_token_id=1, sep_token_id=2
    ),
}
"""As `TINY_CONFIGS`, of encoders; some with a window, some whose positions begin behind the padding's."""


def save_tiny_model(config: hf.PreTrainedConfig, folder: Path, *, seed: int = 0) -> hf.PreTrainedModel:
    """Make a random causal model, or an encoder with the head that fills masks; save it and give it for evaluation.

    Norms and biases are random too, since ones and zeros would hide a norm that is left out or applied twice.
    """
    torch.manual_seed(seed)
    config.dtype = torch.float32
    is_encoder = config.model_type in TINY_ENCODERS
    kind = hf.AutoModelForMaskedLM if is_encoder else hf.AutoModelForCausalLM
    model: hf.PreTrainedModel = kind.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            else:
                parameter.normal_(0.0, 0.15)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    return model


def split_checkpoint(folder: Path, target: Path) -> tuple[list[Path], Path]:
    """Split a saved checkpoint into one file a block and one for the rest: (block files, the rest's file)."""
    groups: dict[int, dict[str, torch.Tensor]] = {}
    for shard in sorted(folder.glob("*.safetensors")):
        with safe_open(shard, framework="pt") as handle:
            for name in handle.keys():  # noqa: SIM118 - not a dict
                number = next((int(part) for part in name.split(".") if part.isdigit()), -1)
                groups.setdefault(number, {})[name] = handle.get_tensor(name)
    target.mkdir(parents=True, exist_ok=True)
    for number, tensors in groups.items():
        save_file(tensors, target / f"{number}.safetensors")
    return [target / f"{number}.safetensors" for number in range(len(groups) - 1)], target / "-1.safetensors"
