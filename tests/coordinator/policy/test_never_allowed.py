"""What never fits is refused by name, with what would fit."""

from __future__ import annotations

import pytest

from coordinator.policy.never_allowed import check_allowed
from coordinator.policy.quota import Wanted
from protocol.errors import ContextExceededError, ForbiddenError, OverLimitError
from protocol.ids import ModelName
from protocol.key_limits import KeyLimits


def wanted(n_tokens: int, n_prompt_tokens: int = 1) -> Wanted:
    return Wanted(n_prompt_tokens=n_prompt_tokens, max_tokens=n_tokens - n_prompt_tokens)


def test_what_never_fits_is_said_to_instead_of_a_time() -> None:
    model = ModelName("tiny")
    with pytest.raises(OverLimitError, match=r"601 together.*600 tokens/min.*waiting doesn't help.*at most 599"):
        check_allowed(KeyLimits(tokens_per_min=600), model, wanted(601))
    with pytest.raises(ContextExceededError, match=r"this API key takes 50.*at most 49"):
        check_allowed(KeyLimits(max_context=50), model, wanted(51))
    with pytest.raises(ContextExceededError, match=r"takes 50: shorten the prompt to at most 49 tokens"):
        check_allowed(KeyLimits(max_context=50), model, wanted(60, n_prompt_tokens=50))
    with pytest.raises(OverLimitError, match="nothing can be generated with so few"):
        check_allowed(KeyLimits(tokens_per_min=1), model, wanted(2))
    with pytest.raises(ForbiddenError, match=r"may not use the model 'tiny', only big"):
        check_allowed(KeyLimits(models=(ModelName("big"),)), model, wanted(2))
    check_allowed(KeyLimits(models=(model,)), model, wanted(2))
