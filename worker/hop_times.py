"""How long a token stays on this worker, from its arrival to its being handed on: the latest ones, as quantiles."""

from __future__ import annotations

import math
from collections import deque

from protocol.messages import MAX_DRAFTS, Step

N_KEPT = 512
"""The latest; quantiles of them are taken once a heartbeat."""


def is_one_round(step: Step) -> bool:
    """Whether a step is a sampled token and what was guessed after it: the rest of a prompt takes other times."""
    return step.is_last and step.n_tokens == 1 + len(step.drafts) <= 1 + MAX_DRAFTS and step.position > 0


class HopTimes:
    """Seconds of the latest steps of one token (with guesses, a few)."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=N_KEPT)

    def add(self, seconds: float) -> None:
        """Note one step."""
        self._seconds.append(seconds)

    def quantiles(self, *shares: float) -> tuple[float, ...]:
        """For each share the smallest time that so many don't exceed; 0 before the first step."""
        ordered = sorted(self._seconds)
        if not ordered:
            return (0.0,) * len(shares)
        return tuple(ordered[max(0, math.ceil(share * len(ordered)) - 1)] for share in shares)
