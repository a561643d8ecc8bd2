"""Which of the ready steps go into the next batch. Pure.

Decode steps go first: each is one token, and somebody reads along. Prefill chunks fill up to the token budget, but
at least one goes along each time, so neither kind starves the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from protocol.ids import SessionId


@dataclass(frozen=True, slots=True)
class ReadyStep:
    """A step that could run now, if no earlier one of its session is still waiting."""

    session_id: SessionId
    n_tokens: int

    @property
    def is_decode(self) -> bool:
        """Whether it is the step of a single token."""
        return self.n_tokens == 1


def next_batch(ready: Sequence[ReadyStep], max_batch_tokens: int) -> list[int]:
    """Indexes into `ready` (which is in order of arrival) of the steps to run now, in the order to run them.

    At most one step a session, its earliest. Not empty unless `ready` is; over `max_batch_tokens` only by the
    decode steps and by the first prefill chunk.
    """
    if len(ready) == 1:  # one stream: no sorting for every token
        return [0]
    heads: dict[SessionId, int] = {}
    for index, step in enumerate(ready):
        heads.setdefault(step.session_id, index)
    decode = [index for index in heads.values() if ready[index].is_decode]
    prefill = [index for index in heads.values() if not ready[index].is_decode]
    return decode + _within_budget(ready, prefill, max_batch_tokens - len(decode))


def _within_budget(ready: Sequence[ReadyStep], prefill: Sequence[int], budget: int) -> list[int]:
    """The first chunk, and those that follow it as long as they fit; in order, so that none is passed over."""
    chosen = list(prefill[:1])
    used = sum(ready[index].n_tokens for index in chosen)
    for index in prefill[1:]:
        used += ready[index].n_tokens
        if used > budget:
            break
        chosen.append(index)
    return chosen
