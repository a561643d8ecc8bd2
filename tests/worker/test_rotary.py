from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from protocol.ids import BlockRange
from tests.support.long_texts import LONG_CONFIGS, ORIGINAL, RUN_ANEW, generated_logits
from tests.support.tiny_checkpoint import WHOLE, TinyCheckpoint
from tests.support.tiny_models import N_BLOCKS, VOCAB_SIZE
from worker.rotary import Rotary
from worker.stage import Stage, StageInput
from worker.text_lengths import LengthRule, TextLengths

END = 30
"""Positions of the texts here."""
PROMPTS = (5, ORIGINAL - 1, ORIGINAL, ORIGINAL + 1, 23)

Checkpoints = Callable[[str], TinyCheckpoint]


def token_ids(seed: int = 1) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    ids: list[int] = torch.randint(3, VOCAB_SIZE, (END,), generator=generator).tolist()
    return ids


class Text:
    """One session over stages, run in pieces as a head would have them run."""

    def __init__(self, stages: Sequence[Stage], ids: Sequence[int], n_prompt: int) -> None:
        self.stages, self.ids = stages, torch.tensor(ids, dtype=torch.int32)
        self.n_prompt = n_prompt
        self.begin()

    def begin(self) -> None:
        self.caches = [stage.new_cache(END) for stage in self.stages]

    def run(self, start: int, end: int) -> torch.Tensor:
        """Logits (end - start, vocab) of positions [start, end)."""
        payload = self.ids[start:end]
        for stage, cache in zip(self.stages, self.caches, strict=True):
            n_logits = (end - start) if stage.is_last else 0
            one = StageInput(
                payload=payload, position=start, cache=cache, n_prompt=self.n_prompt, n_logits=n_logits
            )
            payload = stage.run([one])[0]
        return payload

    def run_pieces(self, start: int, end: int, piece: int) -> torch.Tensor:
        starts = range(start, end, piece)
        return torch.cat([self.run(first, min(first + piece, end)) for first in starts])

    def logits(self, piece: int, n_at_once: int) -> torch.Tensor:
        """Of the prompt's last position and all after it: the prompt in pieces, then so many positions at once."""
        found = [self.run_pieces(0, self.n_prompt, piece)[-1:]]
        position = self.n_prompt
        while position < END:
            anew_after = self.stages[0].rotary.lengths.anew_after(self.n_prompt)
            if position == anew_after:
                self.n_prompt = end = position + 1
                self.begin()
                found.append(self.run_pieces(0, end, piece)[-1:])
            else:
                end = min(position + n_at_once, anew_after or END, END)
                found.append(self.run(position, end))
            position = end
        return torch.cat(found)[:-1]


def stages_of(whole: TinyCheckpoint, cut: Sequence[int] = (0, 1, 3, N_BLOCKS)) -> list[Stage]:
    return [whole.load(BlockRange(start, end)) for start, end in pairwise(cut)]


@pytest.mark.parametrize("n_prompt", PROMPTS)
@pytest.mark.parametrize("name", LONG_CONFIGS)
def test_a_text_in_pieces_equals_what_transformers_generates(
    checkpoint: Checkpoints, name: str, n_prompt: int
) -> None:
    whole, ids = checkpoint(name), token_ids()
    stages = stages_of(whole)
    expected = generated_logits(whole.model, ids[:n_prompt], ids[n_prompt:])
    for piece in (3, 7, END):
        for n_at_once in (1, 4):
            got = Text(stages, ids, n_prompt).logits(piece, n_at_once)
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", set(LONG_CONFIGS) - set(RUN_ANEW))
@pytest.mark.parametrize("n_prompt", PROMPTS)
def test_a_text_that_is_run_again_equals_what_was_run_first(
    checkpoint: Checkpoints, name: str, n_prompt: int
) -> None:
    """After a failover: prompt and answer so far in pieces that know nothing of where the answer begins."""
    whole, ids = checkpoint(name), token_ids()
    expected = generated_logits(whole.model, ids[:n_prompt], ids[n_prompt:])
    again = Text(stages_of(whole), ids, n_prompt).run_pieces(0, END, 7)
    torch.testing.assert_close(again[n_prompt - 1 : -1], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", LONG_CONFIGS)
def test_sessions_leave_nothing_in_each_others_frequencies(checkpoint: Checkpoints, name: str) -> None:
    whole, ids = checkpoint(name), token_ids()
    stages = stages_of(whole)
    alone = Text(stages, ids, ORIGINAL + 2)
    expected = alone.run_pieces(0, ORIGINAL + 2, 5)
    long, beside = Text(stages, ids, END), Text(stages, ids, ORIGINAL + 2)
    got = []
    for start in range(0, ORIGINAL + 2, 5):
        long.run(start, start + 5)
        got.append(beside.run(start, min(start + 5, ORIGINAL + 2)))
    torch.testing.assert_close(torch.cat(got), expected)


def test_an_unsaid_prompt_is_as_long_as_what_is_run_at_once(checkpoint: Checkpoints) -> None:
    whole, ids = checkpoint("llama_longrope"), token_ids()
    said, unsaid = Text(stages_of(whole), ids, END), Text(stages_of(whole), ids, 0)
    torch.testing.assert_close(unsaid.run(0, END), said.run(0, END))


@pytest.mark.parametrize("name", LONG_CONFIGS)
def test_it_finds_out_which_texts_are_run_anew(checkpoint: Checkpoints, name: str) -> None:
    stage = checkpoint(name).load(BlockRange(1, 3))
    long, each = LengthRule(ORIGINAL, is_long_alike=True), LengthRule(ORIGINAL, is_long_alike=False)
    rules = {"llama_dynamic": {each}, "gemma3_both": {long, replace(each, n_alike=ORIGINAL + 3)}}
    assert set(stage.rotary.lengths.rules) == rules.get(name, {long})
    assert stage.rotary.lengths.runs_anew_after == (ORIGINAL if name in RUN_ANEW else None)


def test_other_models_rotate_all_texts_alike(checkpoint: Checkpoints) -> None:
    for name in ("llama", "llama_tied", "gemma3", "gpt2"):
        rotary = checkpoint(name).load(WHOLE).rotary
        assert not rotary.follows_lengths
        assert rotary.lengths == TextLengths()


def test_no_more_memory_is_taken_than_a_sane_config_needs(checkpoint: Checkpoints) -> None:
    model = checkpoint("phi3_longrope").model
    before = model.config.rope_parameters["original_max_position_embeddings"]
    model.config.rope_parameters["original_max_position_embeddings"] = 2**40
    try:
        assert Rotary(model).lengths.runs_anew_after is None
    finally:
        model.config.rope_parameters["original_max_position_embeddings"] = before
