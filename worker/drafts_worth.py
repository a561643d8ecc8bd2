"""How many guessed tokens are worth running: what they are likely to bring, and what they cost. Pure.

On a slow link more positions in a round cost next to nothing, on a CPU without a link each costs a good part of a
token's time. That is measured, and so is how often guesses hold, of those too that weren't run: a text that never
repeats itself is left alone from its first token on, and one that begins to is noticed at no cost.
"""

from __future__ import annotations

from dataclasses import dataclass, field

MIN_GAIN = 1.05
"""Tokens per second are to be better by so much: the measured times are not exact."""
DEFAULT_DRAFT_SHARE = 0.25
"""A position more in a round, as a share of the round, before any was measured: float32 on a CPU."""

_MEMORY = 0.97
"""What an earlier guess still counts with each later one: about thirty count."""
_PRIOR_WEIGHT = 4.0
_CLASSES = (
    (16, 0.85),
    (8, 0.7),
    (4, 0.5),
    (3, 0.25),
    (2, 0.15),
    (1, 0.05),
)
"""From how many matched tokens on, and how often a guess after so many is taken to hold until that was seen."""

_TIME_NOISE = 0.1
_BASE_DRIFT = 0.02
_DRAFT_DRIFT = 0.002
_FIRST_NOISE = 0.2
"""Standard deviations, in rounds without guesses: of one measured, of what changes from one to the next, of the
first."""
_LONGEST = 2.0
"""Times what was expected: a round that takes longer was held up by something else."""


@dataclass(slots=True)
class Acceptance:
    """How often guesses hold, by how many tokens before them matched."""

    _n_held: list[float] = field(default_factory=lambda: [share * _PRIOR_WEIGHT for _, share in _CLASSES])
    _n_seen: list[float] = field(default_factory=lambda: [_PRIOR_WEIGHT] * len(_CLASSES))

    def rate(self, n_matched: int) -> float:
        """The share of guesses after so many matched tokens that hold."""
        index = _class_of(n_matched)
        return self._n_held[index] / self._n_seen[index]

    def add(self, n_matched: int, *, has_held: bool) -> None:
        """Count a guess."""
        index = _class_of(n_matched)
        self._n_held[index] = self._n_held[index] * _MEMORY + has_held
        self._n_seen[index] = self._n_seen[index] * _MEMORY + 1.0


@dataclass(slots=True)
class RoundTimes:
    """How long a round takes by the guesses in it: `base_s` + `draft_s` for each (a Kalman filter of these two)."""

    draft_share: float = DEFAULT_DRAFT_SHARE
    """Of a session before: what a guess costs, as a share of a round without any."""
    base_s: float = 0.0
    draft_s: float = 0.0
    _base_variance: float = 0.0
    _draft_variance: float = 0.0
    _covariance: float = 0.0

    def seconds(self, n_drafts: int) -> float:
        """What a round with so many guesses is expected to take; 0 until one was measured."""
        return self.base_s + n_drafts * self.draft_s

    def add(self, n_drafts: int, seconds: float) -> None:
        """Count a measured round; the first has no guesses."""
        if self.base_s == 0.0:
            self.base_s, self.draft_s = seconds, self.draft_share * seconds
            self._base_variance = (_FIRST_NOISE * seconds) ** 2
            self._draft_variance = (DEFAULT_DRAFT_SHARE * seconds) ** 2
            return
        self._base_variance += (_BASE_DRIFT * self.base_s) ** 2
        self._draft_variance += (_DRAFT_DRIFT * self.base_s) ** 2
        expected = self.seconds(n_drafts)
        with_base = self._base_variance + n_drafts * self._covariance
        with_draft = self._covariance + n_drafts * self._draft_variance
        variance = with_base + n_drafts * with_draft + (_TIME_NOISE * self.base_s) ** 2
        surprise = (min(seconds, _LONGEST * expected) - expected) / variance
        self.base_s = max(self.base_s + with_base * surprise, 1e-6)
        self.draft_s = max(self.draft_s + with_draft * surprise, 0.0)
        self._base_variance -= with_base**2 / variance
        self._draft_variance -= with_draft**2 / variance
        self._covariance -= with_base * with_draft / variance


def best_n_drafts(
    n_matched: int, n_allowed: int, acceptance: Acceptance, times: RoundTimes, *, n_others: int
) -> int:
    """The number of guesses, up to `n_allowed`, that promises the most tokens a second; 0 if that is hardly more.

    Of all sessions together: what a guess costs, `n_others` that run along pay too.
    """
    if times.base_s == 0.0:
        return 0
    best, best_rate = 0, (n_others + 1) / times.base_s
    chance = n_expected = 1.0
    for n_drafts in range(1, n_allowed + 1):
        chance *= acceptance.rate(n_matched + n_drafts - 1)
        n_expected += chance
        rate = (n_others + n_expected / MIN_GAIN) / times.seconds(n_drafts)
        if rate > best_rate:
            best, best_rate = n_drafts, rate
    return best


def _class_of(n_matched: int) -> int:
    return next(index for index, (least, _) in enumerate(_CLASSES) if n_matched >= least)
