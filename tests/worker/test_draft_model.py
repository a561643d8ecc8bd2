"""A draft model says what the model itself says, forgets what it is told to forget, and keeps within its room."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf.constants import GGMLQuantizationType
from transformers import AutoModelForCausalLM

from demo.local_cluster import smollm2_gguf
from protocol.errors import ConfigError, OverloadedError
from protocol.ids import SessionId
from tests.coordinator.gguf_support import write_gguf
from tests.support.tiny_checkpoint import CPU, TinyCheckpoint
from tests.support.whole_cluster import greedy_ids
from worker.draft_model import MAX_POSITIONS, DraftModel, DraftModelRequest, load_draft_model

Checkpoints = Callable[[str], TinyCheckpoint]
PROMPT = [5, 9, 30, 4, 77, 12]
THE_CAPITAL_OF_FRANCE_IS, PARIS = [504, 3575, 282, 4649, 314], 7042
"""In SmolLM2's tokens."""
A, B = SessionId("a"), SessionId("b")


@pytest.fixture
def llama(checkpoint: Checkpoints) -> TinyCheckpoint:
    return checkpoint("llama")


@pytest.fixture
def drafts(llama: TinyCheckpoint) -> DraftModel:
    return load_draft_model(DraftModelRequest(path=llama.folder, precision="float32"), CPU)


def test_it_says_what_the_model_says_after_a_rollback_too(llama: TinyCheckpoint, drafts: DraftModel) -> None:
    first, second = llama.greedy(PROMPT, 2)
    assert drafts.next_token(A, 0, PROMPT, 20) == first
    assert drafts.next_token(B, 0, [7, 7], 20) == llama.greedy([7, 7], 1)[0]
    assert drafts.next_token(A, 6, [first], 20) == second
    other = [*PROMPT[:4], 50, 51]
    assert drafts.next_token(A, 4, other[4:], 20) == llama.greedy(other, 1)[0]


def test_memory_is_set_aside_and_sessions_keep_within_it(drafts: DraftModel) -> None:
    assert drafts.info.n_bytes > MAX_POSITIONS
    drafts.next_token(A, 0, PROMPT, MAX_POSITIONS - 10)
    with pytest.raises(OverloadedError, match=f"20 positions in the draft model; 10 of {MAX_POSITIONS} are free"):
        drafts.next_token(B, 0, PROMPT, 20)
    drafts.forget(A)
    drafts.next_token(B, 0, PROMPT, 20)


def test_a_model_of_another_vocabulary_is_unfit(drafts: DraftModel) -> None:
    n_tokens = drafts.info.vocab_size
    assert drafts.info.unfit_for(n_tokens) == ""
    assert f"{n_tokens} tokens and this model 49152" in drafts.info.unfit_for(49152)


def pickled(folder: Path) -> None:
    (folder / "config.json").write_text("{}")
    torch.save({}, folder / "pytorch_model.bin")


def without_config(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def broken(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "model.safetensors").write_bytes(b"nothing of the kind")


def nameless(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "nobody-knows", "auto_map": {"AutoConfig": "evil.Config"}}')
    (folder / "model.safetensors").write_bytes(b"")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (Path.rmdir, "isn't there"),
        (lambda folder: (folder.rmdir(), folder.write_text("GGUF")), "is a file, and no .gguf"),
        (pickled, "has no safetensors file"),
        (lambda folder: write_gguf(folder / "a.gguf"), "has no safetensors file: name the file .*a.gguf"),
        (without_config, "has no config.json"),
        (broken, "can't be loaded|isn't safetensors|safetensors"),
        (nameless, "config.json can't be used"),
    ],
)
def test_what_is_no_draft_model_is_refused_by_name(
    tmp_path: Path, make: Callable[[Path], object], says: str
) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    make(folder)
    with pytest.raises(ConfigError, match=says) as caught:
        load_draft_model(DraftModelRequest(path=folder, precision="float32"), CPU)
    assert f"--draft-model {folder}" in caught.value.message
    assert re.search("name (a|another|the file) ", caught.value.message)


def of_an_encoding(path: Path) -> None:
    """A GGUF that says of a tensor an encoding that has no weights, and takes less room."""
    write_gguf(path, encoding=GGMLQuantizationType.Q8_0)
    data, kind = path.read_bytes(), GGMLQuantizationType.Q8_0.to_bytes(4, "little")
    name = data.index(b"token_embd.weight") + len(b"token_embd.weight")
    place = data.index(kind, name + 20)
    path.write_bytes(data[:place] + GGMLQuantizationType.I8.to_bytes(4, "little") + data[place + 4 :])


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (
            lambda path: path.write_bytes(b"nothing of the kind"),
            "is not a sound GGUF file: it doesn't start with GGUF",
        ),
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_bytes(write_gguf(path).read_bytes()[:-100]), "is not inside the file"),
        (of_an_encoding, r"is encoded as I8, which can't be unpacked; these can: .*Q4_1.*Q8_0"),
    ],
)
def test_a_gguf_that_is_none_is_refused_by_name(tmp_path: Path, make: Callable[[Path], object], says: str) -> None:
    path = tmp_path / "small.gguf"
    make(path)
    with pytest.raises(ConfigError, match=says) as caught:
        load_draft_model(DraftModelRequest(path=path, precision="float32"), CPU)
    assert f"--draft-model {path}" in caught.value.message
    assert caught.value.message.endswith("name another model, or leave it out")


@pytest.mark.parametrize("encoding", ["F32", "Q4_1", "Q8_0"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_a_gguf_says_what_transformers_makes_of_it(tmp_path: Path, architecture: str, encoding: str) -> None:
    path = write_gguf(tmp_path / "small.gguf", architecture, encoding=GGMLQuantizationType[encoding])
    drafts = load_draft_model(DraftModelRequest(path=path, precision="float32"), CPU)
    whole = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32)
    prompt = [3, 9, 30, 4, 7, 12]
    expected = greedy_ids(whole, prompt, 2)
    assert drafts.next_token(A, 0, prompt, 20) == expected[0]
    assert drafts.next_token(A, len(prompt), expected[:1], 20) == expected[1]
    assert (drafts.info.name, drafts.info.vocab_size, drafts.info.max_positions) == ("small.gguf", 32, 32)


def test_codes_of_a_gguf_stay_codes(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "small.gguf", encoding=GGMLQuantizationType.Q4_1, width=256)

    def n_bytes(**options: Any) -> int:
        return load_draft_model(DraftModelRequest(path=path, **options), CPU).info.n_bytes

    assert n_bytes(precision="bfloat16", quantization="int4") < 0.8 * n_bytes(precision="bfloat16")


@pytest.mark.timeout(300)  # its vocabulary alone takes seconds to read, on a busy machine many
def test_smollm2_drafts_from_its_gguf() -> None:
    drafts = load_draft_model(
        DraftModelRequest(path=smollm2_gguf(), precision="bfloat16", quantization="int4"), CPU
    )
    assert (drafts.info.vocab_size, drafts.info.max_positions) == (49_152, MAX_POSITIONS)
    assert drafts.next_token(A, 0, THE_CAPITAL_OF_FRANCE_IS, 20) == PARIS
