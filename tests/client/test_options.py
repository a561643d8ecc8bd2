from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.options import DEFAULT_MAX_TOKENS, GenerationOptions, SamplingDefaults
from protocol.errors import ContextExceededError, InvalidRequestError
from protocol.ids import BlockRange

MODELS = SamplingDefaults(temperature=0.6, top_p=0.9, top_k=20, min_p=0.1, repetition_penalty=1.1)


def test_what_is_not_asked_is_as_the_model_recommends() -> None:
    sampling = GenerationOptions(top_k=0, temperature=0).sampling(
        MODELS, stop_token_ids=(2,), max_tokens=5, random_seed=77
    )
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.0, 0.9, 0, 0.1)
    assert (sampling.repetition_penalty, sampling.seed, sampling.stop_token_ids) == (1.1, 77, (2,))


def test_a_given_seed_is_kept() -> None:
    assert GenerationOptions(seed=0).sampling(MODELS, stop_token_ids=(), max_tokens=1, random_seed=9).seed == 0


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, float("nan"), float("inf")])
def test_a_timeout_must_end(timeout_s: float) -> None:
    with pytest.raises(InvalidRequestError, match="timeout"):
        GenerationOptions(timeout_s=timeout_s).check()


@pytest.mark.parametrize("min_trust", [-0.1, 1.1, math.nan])
def test_a_floor_of_trust_is_one_that_trust_can_have(min_trust: float) -> None:
    with pytest.raises(InvalidRequestError, match="--min-trust"):
        GenerationOptions(min_trust=min_trust).check()


def test_the_message_names_value_and_range() -> None:
    with pytest.raises(InvalidRequestError, match=r"temperature is -1.*between 0\.0 and 100\.0"):
        GenerationOptions(temperature=-1).check()


def test_private_blocks_are_at_both_ends_and_leave_some_for_workers() -> None:
    assert GenerationOptions().between(4) is None
    assert GenerationOptions(private=True).between(4) == BlockRange(1, 3)
    assert GenerationOptions(private=True, private_blocks=2).between(5) == BlockRange(2, 3)
    with pytest.raises(InvalidRequestError, match=r"2 private blocks at each end of a model that has 4.*at most 1"):
        GenerationOptions(private=True, private_blocks=2).between(4)
    with pytest.raises(InvalidRequestError, match="private_blocks is 0; it must be at least 1"):
        GenerationOptions(private=True, private_blocks=0).check()
    with pytest.raises(InvalidRequestError, match="private_blocks is 1, but the generation is not private"):
        GenerationOptions(private_blocks=1).check()


@given(st.integers(1, 3000), st.integers(1, 3000), st.none() | st.integers(1, 3000))
def test_prompt_and_answer_always_fit_the_context(n_prompt: int, context: int, max_tokens: int | None) -> None:
    options = GenerationOptions(max_tokens=max_tokens)
    try:
        n_allowed = options.n_allowed(n_prompt, context)
    except ContextExceededError:
        assert n_prompt + (max_tokens or 1) > context
    else:
        assert 1 <= n_allowed <= context - n_prompt
        assert n_allowed == (max_tokens or min(DEFAULT_MAX_TOKENS, context - n_prompt))
