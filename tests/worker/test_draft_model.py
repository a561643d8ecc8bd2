"""A draft model says what the model itself says, forgets what it is told to forget, and keeps within its room."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from protocol.errors import ConfigError, OverloadedError
from protocol.ids import SessionId
from tests.support.tiny_checkpoint import CPU, TinyCheckpoint
from worker.draft_model import MAX_POSITIONS, DraftModel, DraftModelRequest, load_draft_model

Checkpoints = Callable[[str], TinyCheckpoint]
PROMPT = [5, 9, 30, 4, 77, 12]
A, B = SessionId("a"), SessionId("b")


@pytest.fixture
def llama(checkpoint: Checkpoints) -> TinyCheckpoint:
    return checkpoint("llama")


@pytest.fixture
def drafts(llama: TinyCheckpoint) -> DraftModel:
    return load_draft_model(DraftModelRequest(folder=llama.folder, precision="float32"), CPU)


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
        (lambda folder: (folder.rmdir(), folder.write_text("GGUF")), "is a file"),
        (pickled, "has no safetensors file"),
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
        load_draft_model(DraftModelRequest(folder=folder, precision="float32"), CPU)
    assert f"--draft-model {folder}" in caught.value.message
    assert "name a" in caught.value.message
