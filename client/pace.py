"""How long a token may take before its route counts as standing still, by how long earlier ones took. Pure."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

SHORTEST_STALL_S = 10.0
LONGEST_STALL_S = 60.0
STALL_FACTOR = 20.0
"""Times the slowest token but 1 in 100: slower than that is standing still."""
FIRST_TOKEN_S = 20.0
PREFILL_S_PER_TOKEN = 0.05
SLOWED_FACTOR = 20.0
"""Times what a token took before: a route that stays so slow for `SHORTEST_STALL_S` is left for another."""
LEAST_SLOW_S = 0.5
"""Whatever it was before, a token in less time isn't slow: on a busy cluster a new start would help nobody."""
N_SLOW_WAITS = 3
"""So many tokens have to be slow themselves: one or two that took seconds were held up, and it may be over."""
_N_WAITS = 100
"""As many as a 99th percentile needs; a route's speed changes, so older ones say little."""
_RECOUNT_AFTER = 16
"""Tokens between two looks at them: sorting for each one would be a good part of what a token costs a client."""


class Slowed(NamedTuple):
    """That a route has become slow."""

    usual_s: float
    """Seconds a token before."""
    now_s: float


class _Stretch(NamedTuple):
    """Tokens since one that was slow, which are slow on the whole: right guesses come at once behind a slow one."""

    n_tokens: int = 0
    n_slow: int = 0
    seconds: float = 0.0


class Pace:
    """The measured speed of one generation, whatever routes it takes."""

    def __init__(self) -> None:
        self._waits_s: deque[float] = deque(maxlen=_N_WAITS)
        self._n_uncounted = 0
        self._limit_s: float | None = None
        """Of a token that isn't the first; None: too few were measured."""
        self._first_s = LONGEST_STALL_S
        self._usual_s: float | None = None
        """Seconds a token while nothing was slow; None: too few were measured."""
        self._stretch = _Stretch()

    def add(self, waited_s: float, *, is_first: bool) -> None:
        """Count a wait; the first token of an attempt has a whole prompt before it."""
        if is_first:
            self._first_s = waited_s
            return
        self._waits_s.append(waited_s)
        if self._usual_s is not None:
            self._stretch = _after(self._stretch, waited_s, self._usual_s)
        self._n_uncounted += 1
        if self._n_uncounted == _RECOUNT_AFTER:
            self._n_uncounted = 0
            self._limit_s = token_limit_s(self._waits_s)
            if not self._stretch.n_tokens:
                self._usual_s = sum(self._waits_s) / len(self._waits_s)

    @property
    def slowed(self) -> Slowed | None:
        """That tokens have taken many times as long as before for a while; None: they haven't."""
        stretch = self._stretch
        if self._usual_s is None or stretch.n_slow < N_SLOW_WAITS or stretch.seconds < SHORTEST_STALL_S:
            return None
        return Slowed(self._usual_s, stretch.seconds / stretch.n_tokens)

    def limit_s(self, *, n_prompt_tokens: int | None, n_stalls: int) -> float:
        """How long the next token may take; `n_prompt_tokens` if it is the first after such a prompt."""
        if n_prompt_tokens is not None:
            return first_token_limit_s(n_prompt_tokens, n_stalls)
        # no token after the first takes as long as the prompt did
        return token_limit_s((self._first_s,)) if self._limit_s is None else self._limit_s


def _after(stretch: _Stretch, waited_s: float, usual_s: float) -> _Stretch:
    """The stretch with one token more; none while tokens come as they should."""
    slow_s = max(LEAST_SLOW_S, SLOWED_FACTOR * usual_s)
    is_slow = waited_s > slow_s
    if not (is_slow or stretch.n_tokens):
        return stretch
    longer = _Stretch(stretch.n_tokens + 1, stretch.n_slow + is_slow, stretch.seconds + waited_s)
    return longer if longer.seconds > slow_s * longer.n_tokens else _Stretch()


def token_limit_s(waits_s: Sequence[float]) -> float:
    """How long the next token may take, by how long tokens took lately (at least one)."""
    p99_s = sorted(waits_s)[math.ceil(0.99 * len(waits_s)) - 1]
    return min(LONGEST_STALL_S, max(SHORTEST_STALL_S, STALL_FACTOR * p99_s))


def first_token_limit_s(n_prompt_tokens: int, n_stalls: int) -> float:
    """How long the first token may take: doubled by each stall, so that a slow route comes to its end at last."""
    return (FIRST_TOKEN_S + PREFILL_S_PER_TOKEN * n_prompt_tokens) * 2.0 ** min(n_stalls, 16)
