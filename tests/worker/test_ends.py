from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models

from protocol.errors import ContextExceededError, InvalidRequestError, NotFoundError, ProtocolError
from protocol.ids import BlockRange
from protocol.messages import Constraint, SamplingParams
from tests.support.long_texts import ORIGINAL, greedy_answer
from tests.support.tiny_checkpoint import TinyCheckpoint
from tests.support.tiny_models import N_BLOCKS, VOCAB_SIZE
from worker.ends import Ends, load_ends, ranges_of_ends
from worker.stage import Stage, StageInput

Checkpoints = Callable[[str], TinyCheckpoint]
PROMPT = [5, 9, 30, 4, 77]
GREEDY = SamplingParams(max_tokens=6)


def ends_of(checkpoint: TinyCheckpoint, n_each: int = 1) -> tuple[Ends, Stage]:
    """The ends, and what is between them."""
    ranges = ranges_of_ends(N_BLOCKS, n_each)
    first, last = (checkpoint.files(blocks) for blocks in ranges)
    between = checkpoint.load(BlockRange(n_each, N_BLOCKS - n_each))
    return load_ends(checkpoint.folder, first, last, ranges, "float32"), between


def answer(ends: Ends, between: Stage, sampling: SamplingParams) -> list[int]:
    cache = between.new_cache(64)
    ends.begin(1, PROMPT, len(PROMPT) + sampling.max_tokens, sampling)
    found: list[int] = []
    position, states = 0, ends.run_first(1, 0, len(PROMPT))
    while True:
        returned = between.run([StageInput(payload=states, position=position, cache=cache)])[0]
        sampled = ends.run_last(1, position, returned, wants_token=True)
        assert sampled is not None
        found.append(sampled.choice.token_id)
        if sampled.states is None:
            return found
        position, states = position + len(states), sampled.states


@pytest.mark.parametrize("architecture", ["llama_tied", "gpt2", "gemma2", "opt_projected", "bloom", "deepseek_v3"])
def test_between_the_ends_there_are_blocks_alone(checkpoint: Checkpoints, architecture: str) -> None:
    tiny = checkpoint(architecture)
    ends, between = ends_of(tiny)
    assert answer(ends, between, GREEDY) == tiny.greedy(PROMPT, 6)
    ends.forget(1)
    with pytest.raises(NotFoundError):
        ends.run_first(1, 0, 1)


def test_a_stop_token_ends_it_and_a_seed_chooses_the_same_again(checkpoint: Checkpoints) -> None:
    ends, between = ends_of(checkpoint("llama"))
    stop = checkpoint("llama").greedy(PROMPT, 3)[2]
    stopped = answer(ends, between, SamplingParams(max_tokens=6, stop_token_ids=(stop,)))
    assert stopped == checkpoint("llama").greedy(PROMPT, 6)[: stopped.index(stop) + 1]
    sampling = SamplingParams(max_tokens=6, temperature=1.0, repetition_penalty=1.2, seed=5)
    assert answer(ends, between, sampling) == answer(ends, between, sampling)


def test_what_is_asked_of_the_answer_holds_here_too(checkpoint: Checkpoints, tmp_path: Path) -> None:
    tiny = checkpoint("llama")
    ends, between = ends_of(tiny)
    constraint = Constraint(kind="regex", text="(ab|ba)c")
    sampling = SamplingParams(max_tokens=6, stop_token_ids=(2,), constraint=constraint)
    with pytest.raises(InvalidRequestError, match="has no tokenizer"):
        ends.begin(1, PROMPT, 20, sampling)
    letters = Tokenizer(models.BPE(vocab={"</s>": 0, "a": 1, "e": 2, "b": 3, "c": 4}, merges=[]))
    letters.decoder = decoders.ByteLevel()
    letters.add_special_tokens(["</s>"])
    (tmp_path / "tokenizer.json").write_text(letters.to_str())
    ends = Ends(ends._first, ends._last, tmp_path)
    assert answer(ends, between, sampling) in ([1, 3, 4, 2], [3, 1, 4, 2])
    sampling = SamplingParams(max_tokens=1, n_logprobs=2, logit_bias=((7, 100.0),))
    ends.begin(1, PROMPT, 20, sampling)
    states = between.run(
        [StageInput(payload=ends.run_first(1, 0, len(PROMPT)), position=0, cache=between.new_cache(64))]
    )[0]
    sampled = ends.run_last(1, 0, states, wants_token=True)
    assert sampled is not None
    expected = tiny.expected(torch.tensor(PROMPT))[1][-1].log_softmax(-1)
    assert sampled.choice.logprob == pytest.approx(float(expected[7]), abs=1e-4)
    assert [token_id for token_id, _ in sampled.choice.top_logprobs] == expected.topk(2).indices.tolist()


BAD: dict[str, tuple[Callable[[Ends], Any], type[Exception]]] = {
    "id": (lambda ends: ends.begin(2, [VOCAB_SIZE], 9, GREEDY), InvalidRequestError),
    "no prompt": (lambda ends: ends.begin(2, [], 9, GREEDY), InvalidRequestError),
    "gap": (lambda ends: ends.run_first(1, 3, 1), ProtocolError),
    "behind the prompt": (lambda ends: ends.run_first(1, 0, len(PROMPT) + 1), ProtocolError),
    "returned gap": (lambda ends: ends.run_last(1, 4, torch.zeros(1, 32), wants_token=True), ProtocolError),
    "too narrow": (lambda ends: ends.run_last(1, 0, torch.zeros(1, 31), wants_token=True), ProtocolError),
    "ids back": (lambda ends: ends.run_last(1, 0, torch.zeros(9), wants_token=True), ProtocolError),
    "too many": (lambda ends: ends.run_last(1, 0, torch.zeros(8, 32), wants_token=True), ContextExceededError),
    "too large": (lambda ends: ends.run_last(1, 0, torch.full((5, 32), 3e38), wants_token=True), ProtocolError),
    "none between": (lambda _ends: ranges_of_ends(4, 2), InvalidRequestError),
    "no ends": (lambda _ends: ranges_of_ends(4, 0), InvalidRequestError),
}


@pytest.mark.parametrize("name", BAD)
def test_what_makes_no_sense_is_refused(checkpoint: Checkpoints, name: str) -> None:
    bad, error = BAD[name]
    ends, _ = ends_of(checkpoint("gpt2"))
    ends.begin(1, PROMPT, 7, GREEDY)
    with pytest.raises(error):
        bad(ends)


def test_a_text_that_outgrows_its_length_goes_on_once_it_is_begun_anew(checkpoint: Checkpoints) -> None:
    tiny = checkpoint("phi3_longrope")
    ends, between = ends_of(tiny)
    cache = between.new_cache(64)
    prompt, n_prompt = [*PROMPT, *PROMPT], 2 * len(PROMPT)
    found: list[int] = []
    while len(found) < 12:
        text = prompt + found
        ends.begin(1, text, 64, GREEDY, n_prompt)
        position, states = 0, ends.run_first(1, 0, len(text))
        while len(found) < 12:
            one = StageInput(payload=states, position=position, cache=cache, n_prompt=n_prompt)
            sampled = ends.run_last(1, position, between.run([one])[0], wants_token=True)
            assert sampled is not None
            found.append(sampled.choice.token_id)
            assert sampled.is_outgrown == (len(prompt) + len(found) == ORIGINAL + 1)
            if sampled.states is None:
                break
            position, states = position + len(states), sampled.states
        cache, n_prompt = between.new_cache(64), len(prompt) + len(found)
    assert found == greedy_answer(tiny.model, prompt, 12)
