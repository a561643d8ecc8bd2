"""How long a token may take before its route counts as standing still, by how long earlier ones took. Pure."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

SHORTEST_STALL_S = 10.0
LONGEST_STALL_S = 60.0
STALL_FACTOR = 20.0
"""Times the slowest token but 1 in 100: slower than that is standing still."""
FIRST_TOKEN_S = 20.0
PREFILL_S_PER_TOKEN = 0.05
_N_WAITS = 100
"""As many as a 99th percentile needs; a route's speed changes, so older ones say little."""
_RECOUNT_AFTER = 16
"""Tokens between two looks at them: sorting for each one would be a good part of what a token costs a client."""


class Pace:
    """The measured speed of one generation, whatever routes it takes."""

    def __init__(self) -> None:
        self._waits_s: deque[float] = deque(maxlen=_N_WAITS)
        self._n_uncounted = 0
        self._limit_s: float | None = None
        """Of a token that isn't the first; None: too few were measured."""
        self._first_s = LONGEST_STALL_S

    def add(self, waited_s: float, *, is_first: bool) -> None:
        """Count a wait; the first token of an attempt has a whole prompt before it."""
        if is_first:
            self._first_s = waited_s
            return
        self._waits_s.append(waited_s)
        self._n_uncounted += 1
        if self._n_uncounted == _RECOUNT_AFTER:
            self._n_uncounted = 0
            self._limit_s = token_limit_s(self._waits_s)

    def limit_s(self, *, n_prompt_tokens: int | None, n_stalls: int) -> float:
        """How long the next token may take; `n_prompt_tokens` if it is the first after such a prompt."""
        if n_prompt_tokens is not None:
            return first_token_limit_s(n_prompt_tokens, n_stalls)
        # no token after the first takes as long as the prompt did
        return token_limit_s((self._first_s,)) if self._limit_s is None else self._limit_s


def token_limit_s(waits_s: Sequence[float]) -> float:
    """How long the next token may take, by how long tokens took lately (at least one)."""
    p99_s = sorted(waits_s)[math.ceil(0.99 * len(waits_s)) - 1]
    return min(LONGEST_STALL_S, max(SHORTEST_STALL_S, STALL_FACTOR * p99_s))


def first_token_limit_s(n_prompt_tokens: int, n_stalls: int) -> float:
    """How long the first token may take: doubled by each stall, so that a slow route comes to its end at last."""
    return (FIRST_TOKEN_S + PREFILL_S_PER_TOKEN * n_prompt_tokens) * 2.0 ** min(n_stalls, 16)
