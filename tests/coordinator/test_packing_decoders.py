"""Decoders that can't be cut are refused when they are added, by what their configs make transformers build."""

from __future__ import annotations

import re
from typing import Any

import pytest

from benchmarks.architecture_configs import tiny_config
from coordinator.packing.decoders import check_decoder
from protocol.errors import InvalidRequestError
from tests.support.tiny_models import TINY_CONFIGS

INDEXED = {"indexer_types": ["full", "shared", "full", "shared"]}


@pytest.mark.parametrize("name", TINY_CONFIGS)
def test_what_is_run_is_let_in(name: str) -> None:
    check_decoder(TINY_CONFIGS[name]())


@pytest.mark.parametrize("model_type", ["glm_moe_dsa", "llama4_text", "gemma4_text", "gpt_neo", "bert", "mpt"])
def test_so_are_indexers_and_blocks_that_differ(model_type: str) -> None:
    check_decoder(tiny_config(model_type))


@pytest.mark.parametrize(
    ("model_type", "settings", "message"),
    [
        ("mamba", {}, "MambaForCausalLM keeps no keys and values of earlier tokens"),
        ("openai-gpt", {}, "keeps no keys and values"),
        ("cpmant", {}, "token ids in every stage"),
        ("trocr", {}, "a part of another model"),
        ("jamba", {}, "recurrent states .* in blocks 0, 2 of 4"),
        ("minimax", {}, "recurrent states"),
        ("recurrent_gemma", {}, "recurrent states"),
        ("deepseek_v4", {}, "no plain keys and values of its own .* of 4 .DeepseekV4"),
        ("gemma3n_text", {}, "in blocks 2, 3 of 4 .DummyLayer"),
        ("gemma4_text", {"hidden_size_per_layer_input": 8}, "hidden_size_per_layer_input is 8"),
        ("glm_moe_dsa", INDEXED, "indexer_types: shared"),
        ("hy_v4", {"indexer_types": ["full"] * 4}, "hands on 128 numbers a token .* its hidden_size is 32"),
        ("roformer", {}, "embed_positions beside its blocks"),
        ("roberta", {}, "positions from behind the padding's"),
        ("longcat_flash", {}, "no list of 8 blocks"),
    ],
)
def test_what_is_not_is_refused_with_the_reason_and_what_to_do(
    model_type: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequestError, match=message) as caught:
        check_decoder(tiny_config(model_type, **settings))
    assert re.search(r"Take a model whose blocks .* docs/reference/architectures\.md", str(caught.value))


def test_a_model_that_cannot_be_built_is_said_to_be() -> None:
    config = TINY_CONFIGS["llama"]()
    config.num_key_value_heads = 0
    with pytest.raises(InvalidRequestError, match="can't be built"):
        check_decoder(config)
