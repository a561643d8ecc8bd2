"""Tiny models whose rotary embeddings follow the length of a text, and what transformers makes of long texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers as hf

from tests.support.tiny_models import CONTEXT, N_BLOCKS, TINY_CONFIGS, VOCAB_SIZE

ORIGINAL = 16
"""Positions up to which these models rotate alike."""


def _longrope(n_frequencies: int) -> dict[str, Any]:
    return {
        "rope_type": "longrope",
        "rope_theta": 10_000.0,
        "factor": CONTEXT / ORIGINAL,
        "original_max_position_embeddings": ORIGINAL,
        "short_factor": [1.5] * n_frequencies,
        "long_factor": [4.0] * n_frequencies,
    }


def _llama(*, dynamic: bool) -> hf.PreTrainedConfig:
    config = TINY_CONFIGS["llama"]()
    config.rope_parameters = _longrope(config.head_dim // 2)
    if dynamic:
        config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 4.0}
        config.max_position_embeddings = ORIGINAL
    return config


def _phi3() -> hf.PreTrainedConfig:
    config = TINY_CONFIGS["phi3"]()
    config.rope_parameters = {"partial_rotary_factor": 0.5, **_longrope(2)}
    config.original_max_position_embeddings = ORIGINAL
    return config


def _phimoe() -> hf.PreTrainedConfig:
    config = hf.PhimoeConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=N_BLOCKS,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        vocab_size=VOCAB_SIZE,
        max_position_embeddings=CONTEXT,
        rope_parameters={"short_mscale": 1.1, "long_mscale": 1.3, **_longrope(4)},
    )
    config.original_max_position_embeddings = ORIGINAL
    return config


def _gemma3() -> hf.PreTrainedConfig:
    """Of each kind of block a rule of its own."""
    config = TINY_CONFIGS["gemma3"]()
    dynamic = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 4.0}
    config.rope_parameters = {"full_attention": _longrope(4), "sliding_attention": dynamic}
    config.max_position_embeddings = ORIGINAL + 3
    return config


LONG_CONFIGS: dict[str, Callable[[], hf.PreTrainedConfig]] = {
    "llama_longrope": lambda: _llama(dynamic=False),
    "llama_dynamic": lambda: _llama(dynamic=True),
    "gemma3_both": _gemma3,
    "phi3_longrope": _phi3,
    "phimoe_longrope": _phimoe,
}
RUN_ANEW = ("phi3_longrope", "phimoe_longrope")
"""Those of which transformers runs a text anew that outgrows `ORIGINAL` positions."""


class _Forced(hf.LogitsProcessor):
    def __init__(self, token_ids: Sequence[int]) -> None:
        self._left = iter(token_ids)

    def __call__(self, _ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        forced = torch.full_like(scores, -torch.inf)
        forced[:, next(self._left)] = 0.0
        return forced


def generated_logits(model: Any, prompt: Sequence[int], answer: Sequence[int]) -> torch.Tensor:
    """The logits (n, vocab) by which `generate` would have chosen each token of the answer."""
    forced = hf.LogitsProcessorList([_Forced(answer)])
    generated = _generated(
        model, prompt, len(answer), logits_processor=forced, output_logits=True, return_dict_in_generate=True
    )
    return torch.cat(generated.logits)


def greedy_answer(model: Any, prompt: Sequence[int], n_tokens: int) -> list[int]:
    """What `generate` says."""
    answer: list[int] = _generated(model, prompt, n_tokens)[0, len(prompt) :].tolist()
    return answer


@torch.inference_mode()
def _generated(model: Any, prompt: Sequence[int], n_tokens: int, **options: Any) -> Any:
    model(torch.tensor([[1]]))  # `dynamic` keeps the frequencies of a longer text until a short one comes
    return model.generate(
        torch.tensor([list(prompt)]),
        attention_mask=torch.ones((1, len(prompt)), dtype=torch.long),
        max_new_tokens=n_tokens,
        do_sample=False,
        eos_token_id=None,
        **options,
    )
