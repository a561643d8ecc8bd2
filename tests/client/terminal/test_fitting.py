from __future__ import annotations

import asyncio
import re

from hypothesis import given
from hypothesis import strategies as st

from client.options import GenerationOptions
from client.terminal.conversation import Conversation, Turn
from client.terminal.fitting import too_long_error
from protocol.ids import ModelName, Revision
from protocol.rest import ModelInfo

CONTEXT = 100
MODEL = ModelInfo(
    name=ModelName("tiny"),
    revision=Revision("0" * 64),
    state="ready",
    reason="",
    architecture="LlamaForCausalLM",
    n_blocks=4,
    context_length=CONTEXT,
    size_bytes=1,
    is_chat=True,
    coverage=(),
)


@given(
    sizes=st.lists(st.integers(1, 60), max_size=8), n_said=st.integers(0, 120), max_tokens=st.none() | st.just(40)
)
def test_what_is_offered_is_the_least_that_helps(sizes: list[int], n_said: int, max_tokens: int | None) -> None:
    conversation = Conversation(turns=tuple(Turn(said="", answer="a" * size) for size in sizes))

    async def n_tokens(left: Conversation) -> int:
        return n_said + sum(len(turn.answer) for turn in left.turns)

    options = GenerationOptions(max_tokens=max_tokens)
    error = asyncio.run(too_long_error(conversation, MODEL, options, n_tokens))
    assert f"{n_said + sum(sizes)} tokens with your message, and tiny a context of {CONTEXT}" in error.message
    offered = re.search(r"/drop (\d+) .* leaves (\d+) tokens", error.message)
    n_wanted = max_tokens or CONTEXT // 4
    left = [CONTEXT - n_said - sum(sizes[n:]) for n in range(len(sizes) + 1)]
    if offered is None:
        assert not sizes or left[-1] < 1
        return
    n_dropped, n_left = int(offered[1]), int(offered[2])
    assert n_left == left[n_dropped]
    assert n_left >= n_wanted or n_dropped == len(sizes)
    assert n_dropped == 0 or left[n_dropped - 1] < n_wanted
    is_less_than_set = max_tokens is not None and n_left < max_tokens
    assert (f"Then /set max_tokens {n_left}, and /retry" in error.message) == is_less_than_set
