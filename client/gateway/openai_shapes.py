"""What OpenAI's answers have in common: usage, log probabilities, ids."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from client.gateway.turns import TokenLogprob, TurnEnd, Usage
from protocol.rest import ModelInfo

TokenBytesOf = Callable[[int], bytes]


def new_id(prefix: str) -> str:
    """An id such as `chatcmpl-...`; it names nothing that is kept."""
    return prefix + secrets.token_hex(16)


def now_s() -> int:
    """Seconds since 1970."""
    return int(datetime.now(UTC).timestamp())


def fingerprint_of(model: ModelInfo) -> str:
    """Which weights answer: the beginning of the model's revision."""
    return f"fp_{model.revision[:12]}"


def usage_of(ends: Iterable[TurnEnd]) -> Usage:
    """Of several answers to one prompt: it is counted once, the answers are summed."""
    usages = [end.usage for end in ends]
    return Usage(
        prompt_tokens=usages[0].prompt_tokens,
        cached_tokens=usages[0].cached_tokens,
        completion_tokens=sum(usage.completion_tokens for usage in usages),
    )


def summed(usages: Sequence[Usage]) -> Usage:
    """Of several prompts."""
    return Usage(
        prompt_tokens=sum(usage.prompt_tokens for usage in usages),
        cached_tokens=sum(usage.cached_tokens for usage in usages),
        completion_tokens=sum(usage.completion_tokens for usage in usages),
    )


def usage_json(usage: Usage) -> dict[str, Any]:
    """As chat and text completions have it."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def chat_logprobs(logprobs: Sequence[TokenLogprob], bytes_of: TokenBytesOf) -> dict[str, Any]:
    """As chat completions have them: one object a token."""

    def entry(token_id: int, logprob: float) -> dict[str, Any]:
        data = bytes_of(token_id)
        return {"token": data.decode(errors="replace"), "logprob": logprob, "bytes": list(data)}

    content = [
        entry(one.token_id, one.logprob) | {"top_logprobs": [entry(*top) for top in one.top]} for one in logprobs
    ]
    return {"content": content, "refusal": None}


def text_logprobs(logprobs: Sequence[TokenLogprob], bytes_of: TokenBytesOf, *, offset: int) -> dict[str, Any]:
    """As text completions have them: one list a property. `offset`: where the first token's text begins."""
    texts = [bytes_of(one.token_id).decode(errors="replace") for one in logprobs]
    offsets = []
    for text in texts:
        offsets.append(offset)
        offset += len(text)
    return {
        "tokens": texts,
        "token_logprobs": [one.logprob for one in logprobs],
        "top_logprobs": [
            {bytes_of(token_id).decode(errors="replace"): logprob for token_id, logprob in one.top}
            for one in logprobs
        ],
        "text_offset": offsets,
    }
