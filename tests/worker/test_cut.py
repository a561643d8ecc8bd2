from __future__ import annotations

import copy

import pytest
import torch
import transformers as hf
from torch import nn

from protocol.errors import UntrustedFileError
from protocol.ids import BlockRange
from tests.support.tiny_models import TINY_CONFIGS
from worker.cut import (
    NoEmbedding,
    PassThrough,
    cut_config,
    cut_modules,
    find_blocks,
    free_embedding,
)


def meta_model(name: str) -> hf.PreTrainedModel:
    with torch.device("meta"):
        model: hf.PreTrainedModel = hf.AutoModelForCausalLM.from_config(TINY_CONFIGS[name]())
    return model


def stand_ins(model: nn.Module) -> dict[str, str]:
    return {n: type(m).__name__ for n, m in model.named_modules() if isinstance(m, (NoEmbedding, PassThrough))}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama", {"model.embed_tokens": "NoEmbedding", "model.norm": "PassThrough", "lm_head": "PassThrough"}),
        (
            "opt_projected",
            {
                "model.decoder.embed_tokens": "NoEmbedding",
                "model.decoder.embed_positions": "NoEmbedding",
                "model.decoder.project_in": "PassThrough",
                "model.decoder.project_out": "PassThrough",
                "model.decoder.final_layer_norm": "PassThrough",
                "lm_head": "PassThrough",
            },
        ),
        (
            "bloom",
            {
                "transformer.word_embeddings": "NoEmbedding",
                "transformer.word_embeddings_layernorm": "PassThrough",
                "transformer.ln_f": "PassThrough",
                "lm_head": "PassThrough",
            },
        ),
    ],
)
def test_a_middle_stage_owns_its_blocks_only(name: str, expected: dict[str, str]) -> None:
    model = meta_model(name)
    cut_modules(model, BlockRange(1, 3))
    assert stand_ins(model) == expected
    assert model.all_tied_weights_keys == {}


def test_what_runs_before_the_blocks_is_told_from_what_runs_after() -> None:
    first, last = meta_model("opt_projected"), meta_model("opt_projected")
    cut_modules(first, BlockRange(0, 1))
    cut_modules(last, BlockRange(3, 4))
    after = {"model.decoder.project_out", "model.decoder.final_layer_norm", "lm_head"}
    before = {"model.decoder.project_in", "model.decoder.embed_positions"}
    assert set(stand_ins(first)) == after
    assert set(stand_ins(last)) == before  # the embedding stays: the head is tied to it


def test_blocks_and_lists_are_counted_from_zero() -> None:
    model = meta_model("gemma3")
    cut_modules(model, BlockRange(1, 3))
    cut_config(model, BlockRange(1, 3))
    blocks = find_blocks(model)[2]
    assert [block.self_attn.layer_idx for block in blocks] == [0, 1]  # type: ignore[union-attr]
    assert model.config.num_hidden_layers == 2
    assert model.config.layer_types == ["sliding_attention", "full_attention"]


def test_a_model_without_a_list_of_blocks_is_refused() -> None:
    model = copy.deepcopy(meta_model("llama"))
    model.config.num_hidden_layers = 7
    with pytest.raises(UntrustedFileError, match="no list of 7 blocks"):
        find_blocks(model)


def test_a_model_that_does_not_call_its_blocks_is_refused() -> None:
    model = meta_model("llama")
    model.model.forward = lambda **_: None
    with pytest.raises(UntrustedFileError, match="doesn't call the blocks"):
        cut_modules(model, BlockRange(0, 2))


def test_a_model_that_cannot_be_called_is_refused() -> None:
    model = meta_model("llama")

    def forward(**_: object) -> None:
        raise ValueError("needs pictures")

    model.model.forward = forward
    with pytest.raises(UntrustedFileError, match="needs pictures"):
        cut_modules(model, BlockRange(0, 2))


def test_an_embedding_that_only_tied_the_head_is_let_go() -> None:
    model = meta_model("llama_tied")
    cut_modules(model, BlockRange(2, 4))
    head = model.lm_head.weight
    free_embedding(model)
    assert isinstance(model.get_input_embeddings(), NoEmbedding)
    assert model.lm_head.weight is head
