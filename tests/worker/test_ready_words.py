from __future__ import annotations

from dataclasses import replace

import pytest

from protocol.control_messages import SpanAssignment
from protocol.ids import BlockRange, ModelName, Revision
from worker.ready_words import caches_of, note_of, ready_lines
from worker.steps import Drafting, LoadedSpan, SpanKey
from worker.wire import WireChoice

KEY = SpanKey(revision=Revision("r" * 64), blocks=BlockRange(0, 4), precision="float32")
LOADED = LoadedSpan(
    key=KEY,
    n_blocks=8,
    n_weight_bytes=1,
    kv_precision="int8",
    kv_bytes_by_block=(1,) * 4,
    hidden_bytes=100 * 4,
    load_s=0.0,
)
SPAN = SpanAssignment(model=ModelName("m"), revision=KEY.revision, blocks=KEY.blocks)
PLENTY = 10**6
OTHER = Drafting(model="d.gguf", unfit_because="d.gguf has 32 tokens", n_positions=64, context_length=64)


def lines(loaded: LoadedSpan, wire: WireChoice = "auto", kv_budget_bytes: int = PLENTY) -> list[str]:
    return ready_lines(SPAN, loaded, device="cpu", wire=wire, kv_budget_bytes=kv_budget_bytes)


def test_it_says_what_caches_are_kept_in_and_how_much_fits() -> None:
    assert caches_of(LOADED, 404 * 1400 + 1) == "caches in int8, room for 1,400 positions"
    assert lines(LOADED) == ["ready: blocks 0:4 of m in float32 on cpu; caches in int8, room for 2,475 positions"]


def test_a_budget_that_hardly_holds_a_session_is_said_loudly() -> None:
    (_, warning) = lines(LOADED, kv_budget_bytes=1000)
    assert warning.startswith("WARNING: 1,000 bytes for caches are room for 2 positions")
    assert "--kv-memory" in warning
    (_, of_encoder) = lines(replace(LOADED, is_encoder=True, working_bytes=4), kv_budget_bytes=1000)
    assert "room for 2 positions of texts: hardly one fits" in of_encoder


def test_how_much_fits_is_held_against_the_models_own_context() -> None:
    budget = 404 * 100  # 100 positions
    assert len(lines(replace(LOADED, context_length=100), kv_budget_bytes=budget)) == 1, "it fits whole"
    (said, warning) = lines(replace(LOADED, context_length=8192), kv_budget_bytes=budget)
    assert "room for 100 positions, of 8,192 that one can have" in said
    assert "hardly a session fits" in warning
    (said,) = lines(replace(LOADED, context_length=8192))
    assert "room for 2,475 positions, of 8,192 that one can have" in said, "routes of longer ones go elsewhere"
    assert "that one can have" not in lines(replace(LOADED, context_length=2048))[0]


@pytest.mark.parametrize(
    ("loaded", "wire", "said"),
    [
        (replace(LOADED, uncompiled_because="no compiler"), "auto", "--compile does nothing here: no compiler"),
        (replace(LOADED, drafting=OTHER), "auto", "--draft-model does nothing here: d.gguf has 32 tokens"),
        (
            LOADED,
            "int8",
            "--wire int8 does nothing here: int8 has a scale for each 16 values, and this model's hidden",
        ),
    ],
)
def test_an_option_that_does_nothing_is_said_loudly_and_in_the_status(
    loaded: LoadedSpan, wire: WireChoice, said: str
) -> None:
    (_, warning) = lines(loaded, wire)
    assert warning.startswith(f"WARNING: {said}")
    assert said.split(": ", 1)[1] in note_of(loaded, wire)


def test_int8_that_can_be_or_that_nothing_would_go_by_is_not_warned_of() -> None:
    assert note_of(replace(LOADED, hidden_bytes=64 * 4), "int8") == ""
    assert note_of(replace(LOADED, n_blocks=4), "int8") == "", "nothing is handed on"


def test_a_draft_model_of_a_shorter_context_says_how_far_it_goes() -> None:
    drafting = Drafting(model="d.gguf", unfit_because="", n_positions=512, context_length=8192)
    assert note_of(replace(LOADED, drafting=drafting), "auto") == (
        "drafts with d.gguf where that pays, up to position 512 of 8,192"
    )
    alike = replace(drafting, context_length=512)
    assert note_of(replace(LOADED, drafting=alike), "auto") == "drafts with d.gguf where that pays"
