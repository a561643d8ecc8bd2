"""What a step of a prompt takes, learned from those that ran, and the pieces that make a prompt done soonest. Pure.

A step of n tokens from position p on takes `base + per_token * n + per_pair * (n * (p + n / 2) + r * p)`: launching
it, the matrices, attention between each token and those before it, and reading those once, which takes as long as
attention of r tokens.

Stages that work at once are a flow shop. Of like ones, the prompt is done after the sum of its pieces' times at
one stage, and the longest piece's at each other (S. M. Johnson, "Optimal two- and three-stage production
schedules", 1954). So all pieces are to take equally long, which makes later ones shorter; and for k of them on s
stages, each with costs c of its own beside its tokens', that is (k + s - 1) * (c + rest / k), least at
k = sqrt((s - 1) * rest / c).
Of unlike ones, quicker stages behind the first add little but the last piece's time, and to slower ones the first
adds little but the first piece's: there pieces' times may fall or rise, each in one proportion to the one before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product

import numpy as np

LEAST_MEASURED = 16
"""Tokens. Steps of fewer take as long as reading the weights does, and say nothing of longer ones."""
_N_KEPT = 3
"""Steps of about one length and position that are remembered; the fastest counts, since whatever made the others
slower was nothing of theirs."""
_BASE_TOKENS = 16
"""What launching a step is taken to cost where that wasn't measured, in tokens."""
_READING_TOKENS = 24
"""Measured with torch's kernels on the CPU, bfloat16, pieces of 64 to 205 tokens up to position 1,024."""
_LEAST_REACH = 256
"""Positions. In steps that end before, attention is less than what steps vary by, so they say nothing of it."""
_MOST_BASE = 0.9
"""Of the time of any step."""
_TINY = 1e-12
_ROUNDING = 1e-9
"""As a share: what takes just as long fits."""
_N_HALVINGS = 6
"""Of a piece's time: what is left is less than the tokens take that lengths are multiples of."""
_MANY_PIECES = 64
"""The longest of so many hardly counts."""
_GROWTHS = (0.6, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5)
"""What a piece may take for each second of the one before, where stages are unlike."""
_N_UNEVEN = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16)
"""Pieces, by which their times are tried; the bounds may make them more."""
_LIKE = _GROWTHS.index(1.0)
_FIRST_TRIED = ((_LIKE, 0), *product((0, _LIKE, len(_GROWTHS) - 1), (1, 3, 6, 8)))
"""Of growths and numbers of pieces, by their places above. Then those beside the best, until none is better."""
_PLACES = frozenset(product(range(len(_GROWTHS)), range(len(_N_UNEVEN))))
_MOST_TRIED = 1200
"""Pieces, each once more for each stage, that are looked at in all: the event loop waits meanwhile."""


@dataclass(frozen=True, slots=True)
class RunStep:
    """A step that ran alone."""

    n_tokens: int
    position: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCost:
    """Seconds of a step by its length and position."""

    base: float
    per_token: float
    per_pair: float = 0.0

    def seconds(self, n_tokens: int, position: int) -> float:
        """Of a step of `n_tokens` from `position` on."""
        return self.apart_s(position) + n_tokens * (self.per_token + self.per_pair * (position + n_tokens / 2))

    def apart_s(self, position: float) -> float:
        """What a step from `position` on takes beside its tokens."""
        return self.base + self.per_pair * _READING_TOKENS * position

    def of_blocks(self, n_blocks: int) -> StepCost:
        """Of so many times the blocks."""
        return StepCost(
            base=self.base * n_blocks,
            per_token=self.per_token * n_blocks,
            per_pair=self.per_pair * n_blocks,
        )

    def tokens_within(self, seconds: float, position: int) -> int:
        """Of the longest step from `position` on that takes no longer."""
        left_s = max(0.0, seconds - self.apart_s(position))
        per_token = self.per_token + self.per_pair * position
        return math.floor(2 * left_s / (per_token + math.sqrt(per_token**2 + 2 * self.per_pair * left_s)))


@dataclass(frozen=True, slots=True)
class PromptCosts:
    """The latest steps of each length and position, and what launching one takes if that was measured.

    It can't be learned from the steps of prompts: pieces that were cut to take equally long look as if length cost
    nothing.
    """

    base_s: float | None = None
    steps: Mapping[tuple[int, int], tuple[RunStep, ...]] = field(default_factory=dict)
    """By the length in half octaves, and the position's bits."""

    def with_step(self, step: RunStep) -> PromptCosts:
        """What is known once another step ran alone; of a few tokens, no more than before."""
        if step.n_tokens < LEAST_MEASURED or step.seconds <= 0:
            return self
        about = (round(2 * math.log2(step.n_tokens)), step.position.bit_length())
        kept = (*self.steps.get(about, ())[1 - _N_KEPT :], step)
        return replace(self, steps={**self.steps, about: kept})

    @property
    def is_of_long_prompts(self) -> bool:
        """Whether a step came far enough for attention to show in what it took."""
        reached = (step.position + step.n_tokens for kept in self.steps.values() for step in kept)
        return max(reached, default=0) >= _LEAST_REACH

    def fitted(self) -> StepCost | None:
        """Least squares of the relative errors; None before any step of a prompt was measured."""
        steps = [min(kept, key=lambda step: step.seconds / step.n_tokens) for kept in self.steps.values()]
        if not steps:
            return None
        base = min([self.base_s or 0.0, *(_MOST_BASE * step.seconds for step in steps)])
        base_tokens = _BASE_TOKENS if self.base_s is None else 0
        seconds = np.array([step.seconds for step in steps])
        n_tokens = np.array([step.n_tokens for step in steps], dtype=float)
        position = np.array([step.position for step in steps])
        pairs = n_tokens * (position + n_tokens / 2) + _READING_TOKENS * position
        rows = np.column_stack([n_tokens + base_tokens, pairs]) / seconds[:, None]
        wanted, scale = 1 - base / seconds, np.linalg.norm(rows, axis=0)
        per_token, per_pair = np.linalg.lstsq(rows / scale, wanted, rcond=None)[0] / scale
        # a token is never free, and those before it make it no cheaper
        if per_token <= 0 or per_pair < 0 or not self.is_of_long_prompts:
            per_token, per_pair = wanted @ rows[:, 0] / scale[0] ** 2, 0.0
        per_token = float(per_token)
        return StepCost(base=base + base_tokens * per_token, per_token=per_token, per_pair=float(per_pair))


@dataclass(frozen=True, slots=True, kw_only=True)
class PieceBounds:
    """How long a piece of a prompt may be."""

    least_tokens: int
    grain: int
    """Lengths are multiples of it, but for the last piece's."""
    short_tokens: int
    """So many may be run at a time, however long that takes; more, up to `most_tokens`, within `longest_s`."""
    most_tokens: int
    longest_s: float


def soonest_pieces(stages: Sequence[StepCost], positions: range, *, bounds: PieceBounds) -> list[range]:
    """The pieces in which a prompt is done soonest by stages of these costs; empty if it has no positions.

    All take equally long, and they are as many as that takes at best, rounded down or up; or ever less or more, if
    stages are unlike and it is sooner so.
    """
    cost = stages[0]
    apart_s, whole_s = _apart_and_whole_s(cost, positions)
    n_at_best = max(1.0, math.sqrt((len(stages) - 1) * whole_s / max(apart_s, _TINY)))
    cuts = [
        _shortest_pieces((apart_s + whole_s / n) * (1 + _ROUNDING), cost, positions, bounds)
        for n in dict.fromkeys((math.floor(n_at_best), math.ceil(n_at_best)))
    ]
    if n_at_best <= _MANY_PIECES and any(stage != cost for stage in stages):
        cuts += filter(None, [_uneven_pieces(stages, positions, bounds)])
    return min(cuts, key=lambda pieces: done_s(stages, pieces))


def _apart_and_whole_s(cost: StepCost, positions: range) -> tuple[float, float]:
    """What a piece takes beside its tokens on average, and what all tokens take."""
    whole_s = cost.seconds(len(positions), positions.start) - cost.apart_s(positions.start)
    return cost.apart_s((positions.start + positions.stop) / 2), whole_s


def _uneven_pieces(stages: Sequence[StepCost], positions: range, bounds: PieceBounds) -> list[range]:
    """About the soonest of those that take each one proportion of the one before; empty if they are too many.

    A search, since to try all took milliseconds.
    """
    apart_s, whole_s = _apart_and_whole_s(stages[0], positions)
    found: dict[tuple[int, int], tuple[float, list[range]]] = {}
    nearby, n_left = list(_FIRST_TRIED), _MOST_TRIED
    while nearby:
        for at in nearby:
            if n_left > 0:
                growth, n = _GROWTHS[at[0]], _N_UNEVEN[at[1]]
                first_s = (whole_s + n * apart_s) / sum(growth**index for index in range(n)) * (1 + _ROUNDING)
                cut = _pieces_within(first_s, stages[0], positions, bounds, growth=growth, most_pieces=_MANY_PIECES)
                n_left -= (len(cut) or _MANY_PIECES) * (1 + len(stages))
                found[at] = (done_s(stages, cut), cut) if cut else (math.inf, cut)
        best = min(found, key=lambda at: found[at][0])
        beside = product(range(best[0] - 1, best[0] + 2), range(best[1] - 1, best[1] + 2))
        nearby = [at for at in beside if at in _PLACES and at not in found] if n_left > 0 else []
    return min(found.values(), key=lambda tried: tried[0])[1]


def _shortest_pieces(long_s: float, cost: StepCost, positions: range, bounds: PieceBounds) -> list[range]:
    """As many pieces as it takes if none takes longer, all as short as they can be without being more."""
    pieces = _pieces_within(long_s, cost, positions, bounds)
    short_s = long_s / 2  # in half the time it would take more
    for _ in range(_N_HALVINGS if len(pieces) <= _MANY_PIECES else 0):
        middle_s = (short_s + long_s) / 2
        fewer = _pieces_within(middle_s, cost, positions, bounds, most_pieces=len(pieces))
        if fewer:
            pieces, long_s = fewer, middle_s
        else:
            short_s = middle_s
    return pieces


def _pieces_within(
    seconds: float,
    cost: StepCost,
    positions: range,
    bounds: PieceBounds,
    *,
    growth: float = 1.0,
    most_pieces: int | None = None,
) -> list[range]:
    """Pieces that take no longer, the first `seconds`, each `growth` of the one before, as far as the bounds allow.

    Empty if they are more than `most_pieces`.
    """
    pieces: list[range] = []
    start = positions.start
    while start < positions.stop:
        if len(pieces) == most_pieces:
            return []
        n_tokens = cost.tokens_within(seconds, start)
        if n_tokens > bounds.short_tokens:
            if seconds > bounds.longest_s:
                n_tokens = min(n_tokens, cost.tokens_within(bounds.longest_s, start))
            n_tokens = max(bounds.short_tokens, min(n_tokens, bounds.most_tokens))
        if n_tokens < positions.stop - start:
            n_tokens -= n_tokens % bounds.grain
        end = min(positions.stop, start + max(bounds.least_tokens, n_tokens))
        pieces.append(range(start, end))
        start, seconds = end, seconds * growth
    return pieces


def done_s(stages: Sequence[StepCost], pieces: Sequence[range]) -> float:
    """When a prompt in these pieces is done by stages of these costs that work at once."""
    ends_s = [0.0] * len(pieces)
    sizes = [(len(piece), piece.start) for piece in pieces]
    for stage in stages:
        end_s, base, per_token, per_pair = 0.0, stage.base, stage.per_token, stage.per_pair
        reading = per_pair * _READING_TOKENS
        for index, (n_tokens, position) in enumerate(sizes):
            if ends_s[index] > end_s:
                end_s = ends_s[index]
            # `StepCost.seconds`, written out: this runs some thousand times while the event loop waits
            end_s += base + reading * position + n_tokens * (per_token + per_pair * (position + n_tokens / 2))
            ends_s[index] = end_s
    return ends_s[-1] if ends_s else 0.0
