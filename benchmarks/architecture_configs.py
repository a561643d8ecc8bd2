"""Tiny configs of whatever architecture transformers has: its own defaults with every size made small.

By the names that configs give to sizes, since nobody keeps a table of two hundred architectures up to date; what
an architecture needs besides is in `_OWN`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.configuration_utils import PreTrainedConfig

N_BLOCKS = 4
VOCAB_SIZE = 96
CONTEXT = 64
WINDOW = 8

_HIDDEN, _INNER, _HEADS, _KV_HEADS, _WIDTH, _EXPERTS, _EXPERT_INNER = 32, 48, 4, 2, 8, 4, 16


def _all(value: int, names: str) -> dict[str, int]:
    return dict.fromkeys(names.split(), value)


_SMALL: dict[str, Any] = {
    **_all(N_BLOCKS, "num_hidden_layers n_layer n_layers num_layers decoder_layers num_decoder_layers num_blocks"),
    **_all(N_BLOCKS, "encoder_layers num_encoder_layers max_window_layers"),
    **_all(_HIDDEN, "hidden_size n_embd d_model dim emb_dim embedding_size word_embed_proj_dim embedding_dim"),
    **_all(_INNER, "intermediate_size ffn_dim n_inner decoder_ffn_dim encoder_ffn_dim ffn_hidden_size dff d_inner"),
    **_all(_INNER, "dim_ff intermediate_size_mlp shared_intermediate_size dense_intermediate_size"),
    **_all(_HEADS, "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads"),
    **_all(_HEADS, "attention_heads num_decoder_attention_heads num_encoder_attention_heads"),
    **_all(_HEADS, "swa_num_attention_heads"),
    **_all(_KV_HEADS, "num_key_value_heads num_kv_heads kv_n_heads swa_num_key_value_heads"),
    **_all(_KV_HEADS, "num_global_key_value_heads"),
    **_all(16, "index_n_heads"),  # so many that no two positions score alike, as where all heads give 0
    **_all(_WIDTH, "head_dim kv_channels global_head_dim v_head_dim qk_nope_head_dim dim_head index_head_dim"),
    **_all(_WIDTH, "d_head"),
    **_all(_WIDTH, "q_lora_rank kv_lora_rank laurel_rank hidden_size_per_layer_input swa_head_dim o_lora_rank"),
    **_all(4, "qk_rope_head_dim rotary_dim d_rel"),
    **_all(_EXPERTS, "num_experts n_routed_experts num_local_experts moe_num_experts"),
    **_all(2, "num_experts_per_tok num_experts_per_token moe_topk moe_top_k moe_k top_k_experts"),
    **_all(_EXPERT_INNER, "moe_intermediate_size shared_expert_intermediate_size expert_ffn_hidden_size"),
    **_all(_EXPERT_INNER, "moe_shared_expert_intermediate_size shared_experts_intermediate_size"),
    **_all(1, "n_group topk_group num_expert_group n_shared_experts num_shared_experts moe_num_shared_experts"),
    **_all(1, "first_k_dense_replace num_dense_layers moe_layer_start_index num_nextn_predict_layers"),
    **_all(2, "sliding_window_pattern global_attn_every_n_layers full_attention_interval no_rope_layer_interval"),
    **_all(2, "interleave_moe_layer_step layer_group_size attn_layer_period expert_layer_period"),
    **_all(2, "num_kv_shared_layers"),
    **_all(1, "attn_layer_offset expert_layer_offset"),
    **_all(WINDOW, "sliding_window attention_window_size attention_chunk_size window_size local_attention"),
    **_all(WINDOW, "index_topk sliding_window_size keep_window_size rel_extent"),
    **_all(CONTEXT, "max_position_embeddings n_positions n_ctx max_seq_len model_max_length max_target_positions"),
    **_all(CONTEXT, "context_length"),
    **_all(VOCAB_SIZE, "vocab_size vocab_size_per_layer_input decoder_vocab_size unpadded_vocab_size"),
    **_all(1, "bos_token_id cls_token_id decoder_start_token_id"),
    **_all(2, "eos_token_id sep_token_id"),
    **_all(0, "pad_token_id"),
    **_all(3, "moe_layer_end_index"),
    # recurrent states, which are refused: only small enough to be made
    **_all(_WIDTH, "mamba_d_state state_size ssm_state_size mamba_d_head mamba_head_dim linear_key_head_dim"),
    **_all(_WIDTH, "linear_value_head_dim linear_head_dim time_step_rank mamba_dt_rank mamba_headdim"),
    **_all(_HEADS, "mamba_n_heads mamba_num_heads n_mamba_heads linear_num_key_heads linear_num_value_heads"),
    **_all(_HEADS, "linear_num_heads"),
    **_all(_HIDDEN, "lru_width attention_hidden_size mamba_d_ssm"),
}  # fmt: skip

_MAY_BE_NONE = ("head_dim", "num_key_value_heads")
"""Which configs work out from the others where they aren't given, or their models should and don't."""

_HALVES = ["sliding_attention", "full_attention"] * (N_BLOCKS // 2)
_CONVOLVED = ["conv", "full_attention"] * (N_BLOCKS // 2)
_BY_KIND = {kind: {"rope_type": "default", "rope_theta": 10_000.0} for kind in set(_HALVES)}
_GEMMA4 = {
    "num_kv_shared_layers": 0,
    "hidden_size_per_layer_input": 0,
    "layer_types": _HALVES,
    "global_head_dim": 16,
}
_MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16}
_OWN: dict[str, dict[str, Any]] = {
    "bamba": _MAMBA,
    "cohere_compass_text": {"layer_types": _HALVES, "rope_parameters": _BY_KIND},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10_000.0, "clip_qkv": 1.0},
        "ffn_config": {"ffn_hidden_size": _INNER, "hidden_size": _HIDDEN, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": _EXPERTS, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "falcon": {"new_decoder_architecture": True},
    "gemma4_text": _GEMMA4,
    "gemma4_unified_text": _GEMMA4,
    "gpt_neo": {"attention_types": [[["global", "local"], N_BLOCKS // 2]]},
    "granitemoehybrid": _MAMBA,
    "lfm2": {"layer_types": _CONVOLVED},
    "lfm2_moe": {"layer_types": _CONVOLVED},
    "mamba2": {"head_dim": 16},
    "xmod": {"default_language": "en_XX"},
    "zamba2": {"layer_types": ["linear_attention", "hybrid"] * (N_BLOCKS // 2)},
    "zaya": {"num_experts_per_tok": 1},
}
"""What an architecture's config needs besides, by its type."""

_PARTS = {
    "gemma4_assistant": {
        "text_config": {
            "num_kv_shared_layers": 30,
            "hidden_size_per_layer_input": 0,
            "vocab_size_per_layer_input": 0,
        }
    }
}
"""Without which there is not even a default."""


def tiny_config(model_type: str, **settings_besides: Any) -> PreTrainedConfig:
    """A config of this type, of the same form as its default and as small as possible.

    Raises whatever the config's own code raises on such values.
    """
    kind: Any = CONFIG_MAPPING[model_type]
    default = kind(**_PARTS.get(model_type, {}))
    if not default.is_encoder_decoder and default.get_text_config() is not default:
        return default  # of several parts, which are refused: sizes of one part hang on those of others
    settings = _small(vars(default))
    if "is_decoder" in vars(default) and not default.is_encoder_decoder:
        settings["is_decoder"] = True  # BERT and its kin, which are encoders otherwise
    config: PreTrainedConfig = kind(**settings | _OWN.get(model_type, {}) | settings_besides)
    return config


def _small(default: dict[str, Any]) -> dict[str, Any]:
    settings = {name: value for name, value in _SMALL.items() if isinstance(default.get(name), int)}
    settings |= {name: _SMALL[name] for name in _MAY_BE_NONE if name in default}
    if "qk_rope_head_dim" in settings:  # latent attention: this part of a head is rotated, and all heads have keys
        settings["head_dim"] = settings["qk_rope_head_dim"]
        settings["num_key_value_heads"] = _HEADS
    return settings


def save_random_model(config: PreTrainedConfig, folder: Path) -> None:
    """Save a model of the config with everything at random that a checkpoint holds."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict(keep_vars=True).items():
            if not tensor.is_floating_point():
                continue
            if tensor.dim() > 1:
                tensor.normal_(0.0, 0.15)
            elif isinstance(tensor, torch.nn.Parameter) or name.endswith("bias"):
                tensor.add_(torch.randn_like(tensor) * 0.1)
    model.save_pretrained(folder)
