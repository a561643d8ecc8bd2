"""Where tensors go, by their names alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.packing.layout import Layout, plan_layout
from protocol.errors import UntrustedFileError
from protocol.model_files.tensors import TensorInfo

VOCAB = 8


def plan(names: list[str], *, n_blocks: int = 2, ties: bool = False) -> Layout:
    shapes = {name: (4,) if "norm" in name or "bias" in name else (VOCAB, 4) for name in names}
    tensors = {name: TensorInfo(name=name, dtype="F32", shape=shape) for name, shape in shapes.items()}
    return plan_layout(tensors, n_blocks=n_blocks, vocab_size=VOCAB, ties_embeddings=ties)


def layers(prefix: str, n_blocks: int = 2) -> list[str]:
    return [f"{prefix}.{index}.attn.weight" for index in range(n_blocks)]


def test_an_untied_model_has_its_ends_apart() -> None:
    layout = plan(["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight", *layers("model.layers")])
    assert layout.before == ("model.embed_tokens.weight",)
    assert layout.after == ("lm_head.weight", "model.norm.weight")
    assert layout.embedding == layout.shared == ()


@pytest.mark.parametrize(
    ("prefix", "before", "embedding", "after"),
    [
        ("transformer.h", ["transformer.wpe.weight"], "transformer.wte.weight", ["transformer.ln_f.weight"]),
        ("h", ["wpe.weight"], "wte.weight", ["ln_f.bias"]),
        ("gpt_neox.layers", [], "gpt_neox.embed_in.weight", ["gpt_neox.final_layer_norm.weight"]),
        (
            "transformer.h",
            ["transformer.word_embeddings_layernorm.weight"],
            "transformer.word_embeddings.weight",
            ["transformer.ln_f.weight"],
        ),
        (
            "model.decoder.layers",
            ["model.decoder.embed_positions.weight", "model.decoder.project_in.weight"],
            "model.decoder.embed_tokens.weight",
            ["model.decoder.final_layer_norm.weight", "model.decoder.project_out.weight"],
        ),
        ("transformer.blocks", [], "transformer.wte.weight", ["transformer.norm_f.weight"]),
    ],
)
def test_a_tied_embedding_has_a_file_of_its_own(
    prefix: str, before: list[str], embedding: str, after: list[str]
) -> None:
    layout = plan([*before, embedding, *after, *layers(prefix)], ties=True)
    assert layout.embedding == (embedding,) or "project_in" in "".join(before)
    assert embedding in layout.embedding
    assert set(before) <= {*layout.before, *layout.embedding}
    assert layout.after == tuple(sorted(after))


def test_without_a_head_the_embedding_is_tied_whatever_the_config_says() -> None:
    layout = plan(["wte.weight", "ln_f.weight", *layers("h")], ties=False)
    assert layout.embedding == ("wte.weight",)


def test_the_unknown_goes_to_both_ends() -> None:
    names = ["model.embed_tokens.weight", "lm_head.weight", "model.mystery", *layers("model.layers")]
    assert plan(names).shared == ("model.mystery",)


def test_other_lists_within_a_layer_are_the_layers() -> None:
    names = [f"model.layers.{n}.mlp.experts.layers.{k}.w" for n in range(2) for k in range(3)]
    assert [len(block) for block in plan([*names, "embed.weight"]).blocks] == [3, 3]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["embed.weight"], "found 0"),
        (["embed.weight", "model.layers.1.w"], "the first is layer 0"),
        (["embed.weight", *layers("model.layers"), *layers("vision.layers")], "found 2"),
        (["lm_head.weight", *layers("model.layers")], "input embedding"),
    ],
)
def test_what_is_no_whole_causal_model_is_refused(names: list[str], message: str) -> None:
    with pytest.raises(UntrustedFileError, match=message):
        plan(names)


@given(
    st.lists(st.from_regex(r"(model|mtp|x)\.(layers\.[0-5]\.)?[a-z_]{1,12}", fullmatch=True), unique=True),
    st.booleans(),
)
def test_every_tensor_is_in_exactly_one_place(names: list[str], ties: bool) -> None:
    names = [*{*names, "model.embed_tokens.weight", *layers("model.layers")}]
    try:
        layout = plan(names, ties=ties)
    except UntrustedFileError:
        return
    placed = [name for tensors in layout.files().values() for name in tensors] + list(layout.left_out)
    assert sorted(placed) == sorted(names)
