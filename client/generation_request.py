"""What a caller asks as a generation in the model's own terms: options checked, the prompt encoded."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any, TypeAlias, cast

from client.chat_template import Message
from client.generation import GenerationRequest
from client.options import GenerationOptions
from client.stopping import checked_stops
from client.tokenizer import ModelTokenizer
from protocol.errors import InvalidRequestError
from protocol.rest import ModelInfo

Prompt: TypeAlias = str | Sequence[int] | Sequence[Message]


def checked_options(options: dict[str, Any]) -> GenerationOptions:
    """The fields of `GenerationOptions` as such.

    Raises:
        InvalidRequestError: there is no such field, or a value is out of its range.
    """
    try:
        checked = GenerationOptions(**options)
    except TypeError as exc:
        raise InvalidRequestError(f"not an option of a generation: {exc}") from exc
    checked.check()
    return checked


async def encoded_prompt(tokenizer: ModelTokenizer, prompt: Prompt) -> list[int]:
    """The token ids of text, messages or, checked, of such ids.

    Raises:
        InvalidRequestError: the prompt is none.
    """
    if isinstance(prompt, str):
        return await tokenizer.encoded_text(prompt)
    if prompt and isinstance(prompt[0], int):
        return tokenizer.checked_ids(cast("Sequence[int]", prompt))
    if not prompt:
        raise InvalidRequestError("the prompt is empty: give text, messages or token ids")
    return await tokenizer.encoded_chat(cast("Sequence[Message]", prompt))


def generation_request(
    info: ModelInfo, tokenizer: ModelTokenizer, token_ids: list[int], options: GenerationOptions
) -> GenerationRequest:
    """What the workers are to be asked.

    Raises:
        InvalidRequestError: the model generates nothing, or can't do this.
        ContextExceededError: the prompt leaves no room for the answer.
    """
    if info.kind == "encoder":
        raise InvalidRequestError(
            f"{info.name} is an encoder ({info.architecture}), which generates nothing: use `client embed`"
        )
    if options.stop_token_ids:
        tokenizer.checked_ids(options.stop_token_ids)
    return GenerationRequest(
        model=info.name,
        revision=info.revision,
        vocab_size=tokenizer.vocab_size,
        prompt=tuple(token_ids),
        sampling=options.sampling(
            tokenizer.defaults,
            stop_token_ids=options.ending_tokens(tokenizer.stop_token_ids),
            max_tokens=options.n_allowed(len(token_ids), info.context_length),
            random_seed=secrets.randbits(62),
        ),
        stops=checked_stops(options.stop),
        speculate=options.speculate,
        between=options.between(info.n_blocks),
        waits_for_quota=options.wait_for_quota,
        waits_for_workers=options.wait_for_workers,
        min_trust=options.min_trust,
        pinned_ends=options.pinned_ends,
    )
