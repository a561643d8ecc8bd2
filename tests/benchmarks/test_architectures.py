"""The sweep over transformers' architectures: those that it found broken, what it refuses, its table."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from benchmarks.architecture_trial import Outcome, tried
from benchmarks.architectures import table

PAGE = Path(__file__).parents[2] / "docs/reference/architectures.md"
ALL_ATTEND = {"layer_types": ["full_attention"] * 4}


@pytest.mark.parametrize(
    ("model_type", "settings"),
    [
        ("llama", {}),
        ("llama4_text", {}),  # its class names another part for its base model than it has
        ("gpt_neo", {}),  # counts its blocks by another name
        ("deepseek_v32", {}),  # keeps an indexer's keys too
        ("glm_moe_dsa", {}),
        ("gemma4_text", {}),  # blocks of different widths
        ("bert", {}),  # a head that is tied to an embedding inside a module of embeddings
        ("biogpt", {}),  # makes a mask of padding where there is none
        ("modernbert-decoder", {}),  # its initialisation looks into parts that other stages have
        ("lfm2", ALL_ATTEND),  # its last norm goes by the embedding's name
        ("granitemoehybrid", ALL_ATTEND),  # could have states, and has none
        ("bart", {"is_decoder": True, "is_encoder_decoder": False}),  # a decoder by itself
        ("bigbird_pegasus", {"is_decoder": True, "is_encoder_decoder": False}),
    ],
)
def test_stages_give_what_transformers_gives(model_type: str, settings: dict[str, Any], tmp_path: Path) -> None:
    outcome = tried(model_type, tmp_path, **settings)
    assert outcome.verdict in ("equal", "alone"), outcome


def test_blocks_that_take_positions_from_their_cache_have_sessions_run_one_at_a_time(tmp_path: Path) -> None:
    """A trial wouldn't show it where they differ in long texts only, as Llama 4's scales from position 8,192 on."""
    assert tried("llama4_text", tmp_path).verdict == "alone"


@pytest.mark.parametrize(
    ("model_type", "said"),
    [
        ("mamba", "keeps no keys and values"),
        ("jamba", r"recurrent states .* in blocks 0, 2 of 4"),
        ("falcon_h1", "recurrent states"),  # a config with infinities
        ("gemma3n_text", "keys and values of other blocks"),
        ("roberta", "positions from behind the padding's"),
        ("llama4", r"several parts \(text_config, vision_config\)"),
        ("bart", "encoder-decoder"),
    ],
)
def test_what_cannot_be_cut_is_refused_when_it_is_added(model_type: str, said: str, tmp_path: Path) -> None:
    outcome = tried(model_type, tmp_path)
    assert outcome.verdict == "refused", outcome
    assert re.search(said, outcome.said), outcome.said


def test_a_model_that_names_its_mask_runs_sessions_together(tmp_path: Path) -> None:
    assert tried("afmoe", tmp_path).verdict == "equal"


def test_what_transformers_itself_cannot_build_is_said_to_be_untried(tmp_path: Path) -> None:
    outcome = tried("llama", tmp_path, num_attention_heads=5)
    assert outcome.verdict == "untried"
    assert outcome.said


def test_the_docs_have_a_row_for_each_architecture_and_count_them_rightly() -> None:
    page = PAGE.read_text()
    rows = re.findall(r"^\| `([^`]+)` \| (runs|refused)", page, re.MULTILINE)
    assert sorted(name for name, _ in rows) == sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    counts = Counter(verdict for _, verdict in rows)
    assert f"tried: {len(rows)}. Of these {counts['runs']} run" in page
    assert f"{counts['refused']} are refused" in page


def test_the_table_has_a_row_for_each() -> None:
    outcomes = [
        Outcome(model_type="llama", verdict="equal"),
        Outcome(model_type="mamba", verdict="refused", said="Mamba | keeps\n a state; Brigade keeps none"),
    ]
    assert table(outcomes).splitlines()[-2:] == [
        "| `llama` | runs |  |",
        "| `mamba` | refused | Mamba / keeps a state |",
    ]
