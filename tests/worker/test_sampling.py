from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, SequenceBiasLogitsProcessor

from protocol.errors import InvalidRequestError, ModelFaultError, ProtocolError
from protocol.messages import SamplingParams
from worker.sampling import Sampler, check_token_ids, generator_for

PROMPT = (3, 7, 7, 1)
VOCAB_SIZE = 40
SEEDS = st.integers(0, 50)

PARAMS = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.3, 1.0, 1.7]),
        "top_k": st.sampled_from([0, 1, 5, 1000]),
        "top_p": st.sampled_from([0.2, 0.9, 1.0]),
        "min_p": st.sampled_from([0.0, 0.1, 0.9]),
        "repetition_penalty": st.sampled_from([0.5, 1.0, 1.3]),
    }
)


def logits(seed: int) -> torch.Tensor:
    return torch.randn(VOCAB_SIZE, generator=torch.Generator().manual_seed(seed)) * 3


def params(**values: Any) -> SamplingParams:
    return SamplingParams(max_tokens=10, **values)


def processors_of_transformers(model: PreTrainedModel, values: dict[str, Any]) -> LogitsProcessorList:
    """What generate() would apply for the same settings; 0 and 1 mean off there too, or None."""
    off = {key: (None if key == "min_p" and not value else value) for key, value in values.items()}
    config = GenerationConfig(do_sample=True, **off)
    config._eos_token_tensor = None
    return model._get_logits_processor(generation_config=config, input_ids_seq_length=len(PROMPT))


@settings(max_examples=40)
@given(values=PARAMS, seed=st.integers(0, 50))
def test_probabilities_are_those_of_transformers(checkpoint: Any, values: dict[str, Any], seed: int) -> None:
    processors = processors_of_transformers(checkpoint("llama").model, values)
    expected = processors(torch.tensor([PROMPT]), logits(seed)[None])[0].softmax(-1)
    allowed = set(expected.nonzero().flatten().tolist())
    drawn = [
        Sampler(params(seed=s, **values), PROMPT).sample(logits(seed), len(PROMPT)).token_id for s in range(20)
    ]
    assert set(drawn) <= allowed
    mine = [int(torch.multinomial(expected, 1, generator=generator_for(s, len(PROMPT)))) for s in range(20)]
    assert drawn == mine


def test_frequencies_are_the_probabilities() -> None:
    scores = logits(1)[:6]
    expected = (scores / 1.5).softmax(-1)
    n_draws = 4000
    counts = torch.zeros(6)
    for seed in range(n_draws):
        counts[Sampler(params(temperature=1.5, seed=seed), ()).sample(scores, 9).token_id] += 1
    chi_squared = ((counts - n_draws * expected) ** 2 / (n_draws * expected)).sum()
    assert chi_squared < 25.7  # 5 degrees of freedom, p = 0.0001; the seeds are fixed, so it never flakes


@given(seed=st.integers(0, 2**63 - 1), position=st.integers(0, 2**31))
def test_a_position_is_drawn_alike_wherever_it_is_drawn(seed: int, position: int) -> None:
    wanted = params(temperature=1.0, seed=seed)
    assert (
        Sampler(wanted, ()).sample(logits(3), position).token_id
        == Sampler(wanted, PROMPT).sample(logits(3), position).token_id
    )


def test_seeds_and_positions_are_unrelated() -> None:
    drawn = {float(torch.rand(1, generator=generator_for(s, p))) for s in range(20) for p in range(20)}
    assert len(drawn) == 400


def test_a_continuation_elsewhere_gives_the_same_tokens() -> None:
    wanted = params(temperature=1.2, repetition_penalty=1.5, top_p=0.9, seed=5)
    here = Sampler(wanted, PROMPT)
    tokens = [here.sample(logits(i), len(PROMPT) + i).token_id for i in range(8)]
    elsewhere = Sampler(wanted, (*PROMPT, *tokens[:3]))
    assert [elsewhere.sample(logits(i), len(PROMPT) + i).token_id for i in range(3, 8)] == tokens[3:]


def test_a_position_that_was_rolled_back_is_drawn_again_the_same() -> None:
    sampler = Sampler(params(temperature=1.0, repetition_penalty=2.0), PROMPT)
    first = [sampler.sample(logits(i), len(PROMPT) + i).token_id for i in range(5)]
    assert [sampler.sample(logits(i), len(PROMPT) + i).token_id for i in range(2, 5)] == first[2:]


def one_by_one(wanted: SamplingParams, rows: torch.Tensor, n_tokens: int) -> list[int]:
    sampler = Sampler(wanted, PROMPT)
    return [sampler.sample(rows[i], len(PROMPT) + i).token_id for i in range(n_tokens)]


@settings(max_examples=60)
@given(values=PARAMS, seed=st.integers(0, 50), n_right=st.integers(0, 4), n_drafts=st.integers(0, 4))
def test_guesses_change_no_token(values: dict[str, Any], seed: int, n_right: int, n_drafts: int) -> None:
    rows = torch.stack([logits(seed + i) for i in range(n_drafts + 1)])
    wanted = params(seed=seed, **values)
    expected = one_by_one(wanted, rows, n_drafts + 1)
    n_right = min(n_right, n_drafts)
    drafts = [token if i < n_right else (token + 1) % VOCAB_SIZE for i, token in enumerate(expected[:n_drafts])]
    sampler = Sampler(wanted, PROMPT)
    found = [choice.token_id for choice in sampler.verify(rows, len(PROMPT), drafts)]
    assert found == expected[: n_right + 1]
    # and what comes after it is as if there had been no guesses
    more = logits(99)
    again = Sampler(wanted, (*PROMPT, *found))
    position = len(PROMPT) + len(found)
    assert sampler.sample(more, position).token_id == again.sample(more, position).token_id


def test_nothing_is_sampled_behind_a_stop_token() -> None:
    rows = torch.stack([logits(i) for i in range(4)])
    expected = one_by_one(params(), rows, 4)
    sampler = Sampler(params(stop_token_ids=(expected[1],)), PROMPT)
    found = sampler.verify(rows, len(PROMPT), expected[:3])
    assert [choice.token_id for choice in found] == expected[:2]


def test_speculated_tokens_have_the_models_own_frequencies() -> None:
    """Pairs of tokens, the second of them after a guess of the first: as often as the chain rule says."""
    first, after = logits(1)[:4] / 2, [logits(20 + token_id)[:4] / 2 for token_id in range(4)]
    expected = (first.softmax(-1)[:, None] * torch.stack(after).softmax(-1)).flatten()
    guess, n_draws = int(first.argmax()), 4000
    counts = torch.zeros(16)
    for seed in range(n_draws):
        sampler = Sampler(params(temperature=1.0, seed=seed), ())
        # the second row is the model's after the guess: of use only if that holds
        token_ids = [choice.token_id for choice in sampler.verify(torch.stack([first, after[guess]]), 9, [guess])]
        if len(token_ids) == 1:
            token_ids.append(sampler.sample(after[token_ids[0]], 10).token_id)
        counts[token_ids[0] * 4 + token_ids[1]] += 1
    chi_squared = ((counts - n_draws * expected) ** 2 / (n_draws * expected)).sum()
    assert chi_squared < 44.3  # 15 degrees of freedom, p = 0.0001; the seeds are fixed, so it never flakes


def test_zero_temperature_takes_the_best_whatever_else_is_set() -> None:
    assert Sampler(params(top_k=5, top_p=0.1, seed=9), ()).sample(logits(2), 0).token_id == int(logits(2).argmax())


def test_the_penalty_also_holds_for_greedy() -> None:
    scores = torch.tensor([1.0, 3.0, 2.9])
    assert Sampler(params(repetition_penalty=1.5), (1,)).sample(scores, 1).token_id == 2


def test_the_penalty_needs_the_tokens_before() -> None:
    with pytest.raises(ProtocolError, match="4 are known"):
        Sampler(params(repetition_penalty=1.5), PROMPT).sample(logits(1), 6)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_logits_that_are_not_finite_are_an_error(value: float, temperature: float) -> None:
    scores = logits(1)
    scores[4] = value
    with pytest.raises(ModelFaultError, match="position 7 are not finite"):
        Sampler(params(temperature=temperature), ()).sample(scores, 7)


def test_stop_tokens() -> None:
    sampler = Sampler(params(stop_token_ids=(2, 5)), ())
    assert [sampler.is_stop(token) for token in (2, 3, 5)] == [True, False, True]


def test_half_precision_logits_are_drawn_in_float32() -> None:
    wanted = params(temperature=1.0, seed=3)
    half = logits(4).bfloat16()
    assert Sampler(wanted, ()).sample(half, 5).token_id == Sampler(wanted, ()).sample(half.float(), 5).token_id


# ------------------------------------------------------------------ what OpenAI's clients know


def reference_scores(wanted: SamplingParams, raw: np.ndarray, answer: list[int]) -> np.ndarray:
    """OpenAI's formula: logits[j] + bias[j] - count[j] * frequency - (count[j] > 0) * presence."""
    counts = np.bincount(np.array(answer, dtype=np.int64), minlength=len(raw))
    scores = raw.astype(np.float64) - counts * wanted.frequency_penalty - (counts > 0) * wanted.presence_penalty
    for token_id, bias in wanted.logit_bias:
        scores[token_id] += bias
    return scores


PENALTIES = st.sampled_from([-2.0, -0.5, 0.0, 0.3, 2.0])
BIASES = st.dictionaries(st.integers(0, VOCAB_SIZE - 1), st.sampled_from([-100.0, -1.5, 2.0, 100.0]), max_size=4)


@settings(max_examples=60)
@given(
    presence=PENALTIES,
    frequency=PENALTIES,
    biases=BIASES,
    answer=st.lists(st.integers(0, 6), max_size=8),
    seed=SEEDS,
)
def test_penalties_and_biases_are_those_of_openai_over_the_answer_alone(
    presence: float, frequency: float, biases: dict[int, float], answer: list[int], seed: int
) -> None:
    wanted = params(
        temperature=0.7,
        seed=seed,
        presence_penalty=presence,
        frequency_penalty=frequency,
        logit_bias=tuple(biases.items()),
        n_answered=len(answer),
    )
    prompt = (*PROMPT, *answer)
    scores = torch.from_numpy(reference_scores(wanted, logits(seed).numpy(), answer)).float()
    expected = int(torch.multinomial((scores / 0.7).softmax(-1), 1, generator=generator_for(seed, len(prompt))))
    assert Sampler(wanted, prompt).sample(logits(seed), len(prompt)).token_id == expected
    greedy = Sampler(replace(wanted, temperature=0.0), prompt).sample(logits(seed), len(prompt))
    assert greedy.token_id == int(scores.argmax())


def test_a_bias_is_that_of_transformers() -> None:
    biases = {3: 2.5, 17: -4.0}
    expected = SequenceBiasLogitsProcessor({(token_id,): bias for token_id, bias in biases.items()})
    wanted = params(temperature=1.0, seed=4, logit_bias=tuple(biases.items()))
    probabilities = expected(torch.tensor([PROMPT]), logits(2)[None])[0].softmax(-1)
    mine = Sampler(wanted, PROMPT).sample(logits(2), 4).token_id
    assert mine == int(torch.multinomial(probabilities, 1, generator=generator_for(4, 4)))


@settings(max_examples=30)
@given(seed=SEEDS, n_right=st.integers(0, 4), n_before=st.integers(0, 4))
def test_what_is_asked_of_an_answer_goes_on_with_guesses_and_elsewhere(
    seed: int, n_right: int, n_before: int
) -> None:
    rows = torch.stack([logits(seed + i) for i in range(5)])
    wanted = params(
        temperature=0.8,
        seed=seed,
        presence_penalty=1.0,
        frequency_penalty=-1.5,
        n_logprobs=3,
        repetition_penalty=1.2,
    )
    whole = Sampler(wanted, PROMPT)
    expected = [whole.sample(rows[i], len(PROMPT) + i) for i in range(5)]
    token_ids = [choice.token_id for choice in expected]
    elsewhere = Sampler(replace(wanted, n_answered=n_before), (*PROMPT, *token_ids[:n_before]))
    drafts = [t if i < n_right else (t + 1) % VOCAB_SIZE for i, t in enumerate(token_ids[n_before:4])]
    found = elsewhere.verify(rows[n_before:], len(PROMPT) + n_before, drafts)
    assert found == expected[n_before : n_before + len(found)]
    assert len(found) == min(n_right, len(drafts)) + 1


def test_log_probabilities_are_of_the_models_own_scores() -> None:
    wanted = params(temperature=0.5, seed=1, logit_bias=((7, 100.0),), top_k=1, n_logprobs=4)
    choice = Sampler(wanted, PROMPT).sample(logits(1), 4)
    expected = logits(1).log_softmax(-1)
    assert choice.token_id == 7
    assert choice.logprob == pytest.approx(float(expected[7]))
    assert [token_id for token_id, _ in choice.top_logprobs] == expected.topk(4).indices.tolist()
    assert [logprob for _, logprob in choice.top_logprobs] == pytest.approx(expected.topk(4).values.tolist())
    chosen_alone = Sampler(replace(wanted, n_logprobs=0), PROMPT).sample(logits(1), 4)
    assert (chosen_alone.logprob, chosen_alone.top_logprobs) == (choice.logprob, ())
    assert Sampler(params(), PROMPT).sample(logits(1), 4).logprob is None


def test_tokens_that_the_model_has_not_are_refused() -> None:
    check_token_ids(params(logit_bias=((39, 1.0),), n_answered=4), PROMPT, VOCAB_SIZE)
    for wanted, why in (
        (params(logit_bias=((40, 1.0),)), "a bias for token 40, outside of the vocabulary of 40"),
        (params(n_answered=5), "5 tokens of a prompt of 4"),
    ):
        with pytest.raises(InvalidRequestError, match=why):
            check_token_ids(wanted, PROMPT, VOCAB_SIZE)
