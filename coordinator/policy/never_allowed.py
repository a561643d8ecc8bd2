"""What a key's limits never let through, whatever is used of them: other models, and more than they are at once."""

from __future__ import annotations

from coordinator.policy.quota import TOKEN_RATES, Wanted, rate_of
from protocol.error_forms import by_limit, repeated
from protocol.errors import ContextExceededError, ForbiddenError, OverLimitError
from protocol.ids import ModelName
from protocol.key_limits import KeyLimits


def check_allowed(limits: KeyLimits, model: ModelName, wanted: Wanted) -> None:
    """Refuse what these limits never let through.

    Raises:
        ForbiddenError: the key may not use the model.
        ContextExceededError: prompt and answer are longer than the key may ask for.
        OverLimitError: one request is more than a rate lets through at once.
    """
    if limits.models is not None and model not in limits.models:
        raise ForbiddenError(
            f"this API key may not use the model {repeated(model)}, only {', '.join(limits.models)}; ask whoever "
            "gave it to you"
        )
    asked = f"the prompt's {wanted.n_prompt_tokens:,} tokens and max_tokens {wanted.max_tokens:,}"
    if limits.max_context is not None and wanted.n_tokens > limits.max_context:
        raise ContextExceededError(
            f"{asked} are {wanted.n_tokens:,} together; this API key takes {limits.max_context:,}: "
            f"{less_words(limits.max_context, wanted.n_prompt_tokens)}"
        )
    for name in TOKEN_RATES:
        limit = rate_of(limits, name)
        if limit is not None and wanted.n_tokens > limit:
            message = (
                f"{asked} are {wanted.n_tokens:,} together; this API key's limit is {limit:,} {name}, so waiting "
                f"doesn't help: {less_words(limit, wanted.n_prompt_tokens)}"
            )
            raise by_limit(name, OverLimitError(message))


def less_words(n_most: int, n_prompt_tokens: int) -> str:
    """What to do where prompt and answer may have `n_most` tokens together, and would have more."""
    n_left = n_most - n_prompt_tokens
    if n_left > 0:
        return f"shorten the prompt or ask for at most {n_left:,}"
    if n_most > 1:
        return f"shorten the prompt to at most {n_most - 1:,} tokens, so that there is room for an answer"
    return "nothing can be generated with so few"
