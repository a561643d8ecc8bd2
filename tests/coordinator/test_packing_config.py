"""Which configs are run, what is said of the others, and the numbers that are taken from them."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from coordinator.packing.model_config import (
    DEFAULT_CONTEXT_LENGTH,
    ModelNumbers,
    kv_elements_per_token,
    model_numbers,
    read_config,
)
from protocol.errors import BrigadeError, InvalidRequestError, UntrustedFileError
from tests.coordinator.packing_support import CONFIG


def numbers_of(folder: Path, config: Any) -> ModelNumbers:
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return model_numbers(read_config(folder, link_root=folder)[0])


def test_the_numbers_are_those_of_the_config(tmp_path: Path) -> None:
    numbers = numbers_of(tmp_path, CONFIG)
    assert (numbers.architecture, numbers.model_type) == ("LlamaForCausalLM", "llama")
    assert (numbers.n_blocks, numbers.hidden_size, numbers.vocab_size, numbers.context_length) == (2, 4, 8, 16)
    assert numbers.kv_elements_per_token == 4
    assert not numbers.ties_embeddings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "made_up", "auto_map": {"AutoModelForCausalLM": "m.M"}}, "trust_remote_code"),
        ({"architectures": ["MyOwn"], "auto_map": {"AutoModelForCausalLM": "m.M"}}, "trust_remote_code"),
        ({"model_type": "made_up"}, "made_up"),
        ({"model_type": None}, "neither a causal text model nor an encoder"),
        ({"model_type": ["llama"]}, "neither a causal text model nor an encoder"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ({"model_type": "bart", "architectures": ["BartForCausalLM"]}, "encoder-decoder.*decoder-only"),
        ({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}, "T5For"),
        ({"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"]}, "Gemma3For.*several parts"),
        ({"model_type": "llama4", "architectures": ["Llama4ForCausalLM"]}, r"several parts \(text_config, vision"),
        ({"model_type": "phi4_multimodal"}, r"several parts \(audio_config, vision_config\)"),
        ({"model_type": "blt"}, "several parts"),
        ({"model_type": "llama4", "architectures": ["Llama4ForConditionalGeneration"]}, "Llama4For"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, r"quantised \(gptq\).*GGUF"),
        ({"quantization_config": {"quant_method": "fp8"}}, r"quantised \(fp8\)"),
        ({"quantization_config": "x"}, r"quantised \(unknown\)"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"hidden_size": -4}, "hidden_size|can't be used"),
        ({"vocab_size": "many"}, "vocab_size|can't be used"),
        ({"num_attention_heads": 0}, "can't be used|num_attention_heads"),
    ],
)
def test_what_cannot_be_run_is_refused_with_the_reason(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        numbers_of(tmp_path, CONFIG | change)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '"x"'])
def test_what_is_no_json_object_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UntrustedFileError, match=r"config\.json"):
        numbers_of(tmp_path, text)


def test_a_missing_config_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="missing"):
        read_config(tmp_path, link_root=tmp_path)


@pytest.mark.parametrize("key", sorted(CONFIG))
@pytest.mark.parametrize("value", [None, -1, 0, "x", [], {}, 1e400, [[]], 10**30])
def test_a_nonsensical_value_never_gives_anything_but_an_error_of_ours(
    tmp_path: Path, key: str, value: object
) -> None:
    with suppress(BrigadeError):
        numbers_of(tmp_path, CONFIG | {key: value})


@pytest.mark.parametrize("names", [None, [], ["LlamaModel"], ["LLaMAForCausalLM"]])
def test_a_base_model_or_no_class_is_the_causal_class(tmp_path: Path, names: list[str] | None) -> None:
    assert numbers_of(tmp_path, CONFIG | {"architectures": names}).architecture == "LlamaForCausalLM"


def test_infinities_are_read_as_transformers_writes_them(tmp_path: Path) -> None:
    AutoConfig.for_model("falcon_h1").save_pretrained(tmp_path)
    assert "__float__" in (tmp_path / "config.json").read_text()
    assert read_config(tmp_path, link_root=tmp_path)[0].time_step_limit[1] == float("inf")


def test_a_model_without_a_longest_context_gets_a_stated_default(tmp_path: Path) -> None:
    numbers = numbers_of(tmp_path, {"model_type": "bloom", "hidden_size": 8, "n_layer": 2, "n_head": 2})
    assert numbers.context_length == DEFAULT_CONTEXT_LENGTH
    assert "2048" in numbers.notes[0]


@pytest.mark.parametrize(
    ("model_type", "settings", "expected"),
    [
        ("gpt2", {"n_embd": 12, "n_head": 3}, 24),
        ("llama", {"hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 2}, 32),
        ("qwen3", {"hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 32}, 128),
        ("falcon", {"hidden_size": 64, "num_attention_heads": 8, "multi_query": True}, 16),
        ("falcon", {"hidden_size": 64, "num_attention_heads": 8, "multi_query": False}, 128),
        ("gpt_bigcode", {"n_embd": 64, "n_head": 8, "multi_query": True}, 16),
        ("deepseek_v3", {"kv_lora_rank": 512, "qk_rope_head_dim": 64}, 576),
        ("mimo_v2_flash", {"num_key_value_heads": 2, "head_dim": 12, "v_head_dim": 8}, 40),
        ("gemma4_text", {"head_dim": 8, "global_head_dim": 32, "num_key_value_heads": 2}, 128),
    ],
)
def test_cached_elements_a_token(model_type: str, settings: dict[str, Any], expected: int) -> None:
    assert kv_elements_per_token(AutoConfig.for_model(model_type, **settings)) == expected
