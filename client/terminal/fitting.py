"""What to do where a conversation has outgrown the model's context: nothing is ever cut unasked."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from client.options import GenerationOptions
from client.terminal.conversation import Conversation
from protocol.errors import ContextExceededError
from protocol.rest import ModelInfo

CountTokens = Callable[[Conversation], Awaitable[int]]
"""How many tokens a conversation has with the message that is to be sent."""

_SHARE_FOR_ANSWER = 4
"""A quarter of the context is room enough for an answer whose length nobody has set: what is offered is to last."""


async def too_long_error(
    conversation: Conversation, model: ModelInfo, options: GenerationOptions, count: CountTokens
) -> ContextExceededError:
    """The error that says how long it is and what would help, which is found out by `count`."""
    context, n_tokens, n_turns = model.context_length, await count(conversation), len(conversation.turns)
    n_free = context - n_tokens
    what = f"the conversation has {n_tokens} tokens with your message, and {model.name} a context of {context}"
    if n_free > 0:
        what += f", which leaves {n_free} for an answer that may have {options.n_wanted} (/set max_tokens {n_free})"
    if n_turns == 0:
        return ContextExceededError(f"{what}. Nothing was sent: shorten the message, or the system message")
    n_least = options.max_tokens or max(1, context // _SHARE_FOR_ANSWER)
    n_dropped = await _fewest_dropped(conversation, context - n_least, count)
    n_then = context - await count(conversation.without_oldest(n_dropped))
    if n_then < 1:
        return ContextExceededError(
            f"{what}. Nothing was sent or cut, and no turn forgotten makes room enough: shorten the message, or "
            "choose a model with a longer context (/models, /model NAME)"
        )
    turns = "the oldest turn" if n_dropped == 1 else f"the {n_dropped} oldest of {n_turns} turns"
    setting = f"/set max_tokens {n_then}, and " if n_then < (options.max_tokens or 0) else ""
    return ContextExceededError(
        f"{what}. Nothing was sent or cut: /drop {n_dropped} forgets {turns}, which leaves {n_then} tokens for an "
        f"answer; /clear forgets all; /save FILE keeps them first. Then {setting}/retry sends your message"
    )


async def _fewest_dropped(conversation: Conversation, n_allowed: int, count: CountTokens) -> int:
    """How many of the oldest turns to forget so that no more tokens are left; all of them if that isn't enough."""
    fewest, most = 0, len(conversation.turns)
    while fewest < most:
        middle = (fewest + most) // 2
        if await count(conversation.without_oldest(middle)) <= n_allowed:
            most = middle
        else:
            fewest = middle + 1
    return fewest
