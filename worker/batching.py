"""Which of the ready steps go into the next batch, and whether to wait a moment for more. Pure.

Decode steps go first: each is one token, and somebody reads along. Prefill chunks fill up to the token budget, but
at least one goes along each time, so neither kind starves the other.

Where a route has several hops, the sessions that decode form as many groups: while one hop runs a group, the others
run the others. All in one batch would leave every hop but one idle.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from protocol.ids import SessionId

_GATHER_SHARE = 0.1
"""Of a decode step: what a group waits at most for the next of those who belong to it. They come from one batch of
the hop before, each in a frame of its own, one after the other; those left behind lose a whole step."""
_LONGEST_GATHER_S = 0.005
_GATHERING_SHARE = 0.5
"""Of a decode step: what it waits at most for all of them."""


@dataclass(frozen=True, slots=True)
class ReadyStep:
    """A step that could run now, if no earlier one of its session is still waiting."""

    session_id: SessionId
    n_tokens: int
    n_drafts: int = 0

    @property
    def is_decode(self) -> bool:
        """Whether it is the step of a single token, and of guesses what follows it."""
        return self.n_tokens == 1 + self.n_drafts


@dataclass(frozen=True, slots=True)
class GroupSize:
    """How many sessions decode together: the groups are as even as can be."""

    least: int
    most: int


def group_size(n_hops: Collection[int]) -> GroupSize:
    """The size of a group; `n_hops` has the hops of the route of each session that decodes now."""
    n_groups = max(n_hops, default=1)
    return GroupSize(least=len(n_hops) // n_groups, most=max(1, -(-len(n_hops) // n_groups)))


def gather_s(ready: Sequence[ReadyStep], size: GroupSize, decode_step_s: float) -> float:
    """How long to wait for one more decode step before the next batch; 0 if there is nothing to wait for.

    One stream never waits, nor does a prompt.
    """
    if len(ready) >= size.least or not all(step.is_decode for step in ready):
        return 0.0
    return min(_LONGEST_GATHER_S, _GATHER_SHARE * decode_step_s)


def gather_until(began_s: float, came_s: float, wait_s: float, decode_step_s: float) -> float:
    """Until when to wait for one more of a group, as long as one comes after the other.

    `began_s`, `came_s`: when waiting began, and when the latest came; `wait_s`: what `gather_s` gave.
    """
    return min(came_s + wait_s, began_s + _GATHERING_SHARE * decode_step_s)


def next_batch(ready: Sequence[ReadyStep], max_batch_tokens: int, size: GroupSize) -> list[int]:
    """Indexes into `ready` (which is in order of arrival) of the steps to run now, in the order to run them.

    At most one step a session, its earliest, and at most a group of decode steps, the oldest. Not empty unless
    `ready` is; over `max_batch_tokens` only by the decode steps and by the first prefill chunk.
    """
    if len(ready) == 1:  # one stream: no sorting for every token
        return [0]
    heads: dict[SessionId, int] = {}
    for index, step in enumerate(ready):
        heads.setdefault(step.session_id, index)
    decode = [index for index in heads.values() if ready[index].is_decode][: size.most]
    prefill = [index for index in heads.values() if not ready[index].is_decode]
    n_decode_tokens = sum(ready[index].n_tokens for index in decode)
    return decode + _within_budget(ready, prefill, max_batch_tokens - n_decode_tokens)


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
