from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.options import DEFAULT_MAX_TOKENS, GenerationOptions, SamplingDefaults
from protocol.errors import ContextExceededError, InvalidRequestError
from protocol.ids import BlockRange
from protocol.messages import Constraint

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


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"presence_penalty": 2.1}, r"presence_penalty is 2\.1; it must be between -2\.0 and 2\.0"),
        ({"frequency_penalty": math.nan}, "frequency_penalty is nan"),
        ({"logprobs": 21}, "logprobs is 21; it must be between 0 and 20"),
        ({"logit_bias": {5: 101.0}}, r"the bias of token 5 is 101\.0; it must be between -100\.0 and 100\.0"),
        ({"logit_bias": {-1: 1.0}}, "a token id that is not between 0"),
        ({"logit_bias": {2**64: 1.0}}, "a token id that is not between 0"),
        ({"max_tokens": 10**400}, "max_tokens is 1000"),
        ({"temperature": 10**400}, "temperature is inf"),
        ({"logit_bias": {"5": 1.0}}, "from token ids to numbers; '5' to 1.0 isn't"),
        ({"logit_bias": dict.fromkeys(range(1025), 1.0)}, "1025 biased tokens; at most 1024"),
        ({"json_schema": "{"}, "json_schema is not JSON"),
        ({"json_schema": "true"}, "json_schema is a JSON bool; it must be an object"),
        ({"regex": "a" * 65_537}, "a regex of 65537 bytes; 1 to 65536"),
        ({"grammar": ""}, "a lark of 0 bytes"),
        ({"regex": "a", "json_schema": "{}"}, "2 of json_schema, regex and grammar"),
        ({"regex": "a", "ignore_eos": True}, "told to go on after it"),
    ],
)
def test_what_no_tail_does_is_refused_by_name(options: dict[str, Any], why: str) -> None:
    with pytest.raises(InvalidRequestError, match=why):
        GenerationOptions(**options).check()


def test_what_openais_clients_ask_reaches_the_tail() -> None:
    options = GenerationOptions(
        presence_penalty=1, frequency_penalty=-0.5, logit_bias={7: -100}, logprobs=0, json_schema='{"type": "null"}'
    )
    options.check()
    sampling = options.sampling(MODELS, stop_token_ids=(2,), max_tokens=5, random_seed=77)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (1.0, -0.5)
    assert (sampling.logit_bias, sampling.n_logprobs) == (((7, -100.0),), 0)
    assert sampling.constraint == Constraint(kind="json_schema", text='{"type": "null"}')
    assert sampling.needs_newest
    plain = GenerationOptions().sampling(MODELS, stop_token_ids=(2,), max_tokens=5, random_seed=77)
    assert not plain.needs_newest
