"""How long to wait before trying again: exponential with full jitter, so that many callers spread out."""

from __future__ import annotations

import random

import tenacity

FIRST_DELAY_S = 0.2
LONGEST_DELAY_S = 15.0


def jittered(longest_delay_s: float = LONGEST_DELAY_S) -> tenacity.wait.wait_base:
    """Delays for tenacity: random in [0, 0.2 s x 2^attempt], capped.

    Full jitter: M. Brooker, "Exponential Backoff and Jitter", AWS Architecture Blog, 2015.
    """
    return tenacity.wait_random_exponential(multiplier=FIRST_DELAY_S, max=longest_delay_s)


def jittered_delay_s(n_failures: int, rng: random.Random, longest_delay_s: float = LONGEST_DELAY_S) -> float:
    """The same delay for loops that count their failures themselves."""
    return rng.uniform(0.0, min(longest_delay_s, FIRST_DELAY_S * 2.0 ** min(n_failures, 32)))
