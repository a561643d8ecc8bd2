"""How many guessed tokens are worth running: what they are likely to bring, and what they cost. Pure.

On a slow link more positions in a round cost next to nothing, on a CPU without a link each costs a good part of a
token's time. That is measured, and so is how often guesses hold, of those too that weren't run: a text that never
repeats itself is left alone from its first token on, and one that begins to is noticed at no cost.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from operator import mul
from typing import NamedTuple

from protocol.messages import MAX_DRAFTS

MIN_GAIN = 1.05
"""Tokens per second are to be better by so much: the measured times are not exact."""

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

_MODEL_RATE = 0.6
"""How often a draft model's guess is taken to hold until that was seen."""
_MODEL_FADING = 0.98
"""What was seen of it counts so much with each round in which it isn't asked: it is tried again after a while."""
_TIME_WEIGHT = 0.2
"""Of a new measurement of the draft model's times."""

_TIME_NOISE = 0.1
_DRIFTS = (0.01, 0.01, 0.002)
_FIRST_NOISES = (0.2, 0.15, 0.1)
"""Standard deviations, in rounds without guesses: of one measured; then of a round without guesses, what guessing
adds, and a guess: of how they change from one round to the next, and of what they are taken for at first."""
_LONGEST = 2.0
"""Times what was expected: a round that takes longer was held up by something else. None counts as taking less than
one of as many parts: what was held up may have been what is compared with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftShares:
    """What guesses cost, as shares of a round without any."""

    guessing: float
    """Whatever their number: several rows are multiplied by other kernels than one."""
    draft: float
    """Each."""


DEFAULT_SHARES = DraftShares(guessing=0.2, draft=0.05)
"""Before any was measured: between float32 on a CPU (0.5 and 0.03) and bfloat16 (0 and 0.03)."""


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
    """How long a round takes by the guesses in it: `base_s`, `guessing_s` if there are any, `draft_s` for each.

    A Kalman filter of these three.
    """

    shares: DraftShares = DEFAULT_SHARES
    """Of a session before."""
    base_s: float = 0.0
    guessing_s: float = 0.0
    draft_s: float = 0.0
    _covariances: Sequence[Sequence[float]] = ()
    """(3, 3), in the order above."""

    def seconds(self, n_drafts: int) -> float:
        """What a round with so many guesses is expected to take; 0 until one was measured."""
        return self.base_s + self.guessing_s + n_drafts * self.draft_s if n_drafts else self.base_s

    def measured_shares(self) -> DraftShares:
        """What guesses cost, for a session that comes later; once a round was measured."""
        return DraftShares(guessing=self.guessing_s / self.base_s, draft=self.draft_s / self.base_s)

    def add(self, n_drafts: int, seconds: float) -> None:
        """Count a measured round; the first has no guesses."""
        if self.base_s == 0.0:
            self.base_s = seconds
            self.guessing_s, self.draft_s = self.shares.guessing * seconds, self.shares.draft * seconds
            self._covariances = _diagonal(seconds, _FIRST_NOISES)
            return
        inputs = (1.0, float(n_drafts > 0), float(n_drafts))
        known = [list(row) for row in self._covariances]
        for index, drift in enumerate(_DRIFTS):
            known[index][index] += (drift * self.base_s) ** 2
        gains = [sum(map(mul, row, inputs)) for row in known]
        expected = self.seconds(n_drafts)
        variance = sum(map(mul, gains, inputs)) + (_TIME_NOISE * self.base_s) ** 2
        likely_s = min(max(seconds, expected / _LONGEST), expected * _LONGEST)
        surprise = (likely_s - expected) / variance
        self.base_s = max(self.base_s + gains[0] * surprise, 1e-6)
        self.guessing_s = max(self.guessing_s + gains[1] * surprise, 0.0)
        self.draft_s = max(self.draft_s + gains[2] * surprise, 0.0)
        self._covariances = [
            [value - gain * other / variance for value, other in zip(row, gains, strict=True)]
            for row, gain in zip(known, gains, strict=True)
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelTimes:
    """What a draft model takes, measured."""

    guess_s: float
    prompt_token_s: float
    """For each token of a text that it is to go on from."""


@dataclass(slots=True)
class ModelWorth:
    """How often the guesses of a draft model hold in one session, and what they take."""

    times: ModelTimes
    _n_held: float = 0.0
    _n_seen: float = 0.0

    @property
    def rate(self) -> float:
        """The share of its guesses that hold, if those before them have."""
        return (self._n_held + _MODEL_RATE * _PRIOR_WEIGHT) / (self._n_seen + _PRIOR_WEIGHT)

    def setup_s(self, n_behind: int) -> float:
        """What it takes to read so many tokens; as few as a round brings are a part of its first guess."""
        return n_behind * self.times.prompt_token_s if n_behind > MAX_DRAFTS + 1 else 0.0

    def add(self, n_drafts: int, n_held: int) -> None:
        """Count guesses: the first `n_held` have held, the next one hasn't, those behind it tell nothing."""
        n_seen = min(n_drafts, n_held + 1)
        fading = _MEMORY**n_seen
        self._n_held = self._n_held * fading + n_held
        self._n_seen = self._n_seen * fading + n_seen

    def fade(self) -> None:
        """Count a round in which it wasn't asked."""
        self._n_held *= _MODEL_FADING
        self._n_seen *= _MODEL_FADING

    def took(self, n_drafts: int, seconds: float) -> None:
        """Count what so many guesses took, without reading a long text before."""
        guess_s = self.times.guess_s + _TIME_WEIGHT * (seconds / n_drafts - self.times.guess_s)
        self.times = ModelTimes(guess_s=guess_s, prompt_token_s=self.times.prompt_token_s)


class Promise(NamedTuple):
    """So many guesses, and what they promise: tokens a second of all sessions together."""

    n_drafts: int
    tokens_per_s: float


def best_n_drafts(
    n_matched: int, n_allowed: int, acceptance: Acceptance, times: RoundTimes, *, n_others: int
) -> Promise:
    """The number of guesses, up to `n_allowed`, that promises the most; 0 if that is hardly more than without.

    Of all sessions together: what a guess costs, `n_others` that run along pay too.
    """
    return _best((acceptance.rate(n_matched + index) for index in range(n_allowed)), times, n_others=n_others)


def best_n_model_drafts(
    n_allowed: int, worth: ModelWorth, times: RoundTimes, *, n_others: int, n_behind: int, n_left: int
) -> Promise:
    """Likewise of a draft model's guesses, which take its time too.

    The `n_behind` tokens that it has to read first are paid for by the `n_left` that may still come.
    """
    return _best(
        repeat(worth.rate, n_allowed),
        times,
        n_others=n_others,
        guess_s=worth.times.guess_s,
        setup_s_per_token=worth.setup_s(n_behind) / max(1, n_left),
    )


def _best(
    chances: Iterable[float],
    times: RoundTimes,
    *,
    n_others: int,
    guess_s: float = 0.0,
    setup_s_per_token: float = 0.0,
) -> Promise:
    """The best number of guesses, which hold with these chances one after the other."""
    if times.base_s == 0.0:
        return Promise(0, 0.0)
    best = Promise(0, (n_others + 1) / times.base_s)
    reached = n_expected = 1.0
    for n_drafts, chance in enumerate(chances, 1):
        reached *= chance
        n_expected += reached
        seconds = times.seconds(n_drafts) + n_drafts * guess_s + n_expected * setup_s_per_token
        tokens_per_s = (n_others + n_expected / MIN_GAIN) / seconds
        if tokens_per_s > best.tokens_per_s:
            best = Promise(n_drafts, tokens_per_s)
    return best


def _diagonal(unit: float, deviations: Sequence[float]) -> list[list[float]]:
    """The covariances of what doesn't hang together."""
    return [
        [(unit * one) ** 2 if i == j else 0.0 for j in range(len(deviations))] for i, one in enumerate(deviations)
    ]


def _class_of(n_matched: int) -> int:
    return next(index for index, (least, _) in enumerate(_CLASSES) if n_matched >= least)
