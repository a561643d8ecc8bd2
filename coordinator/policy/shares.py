"""How the blocks of a model are shared out among the stages of one pipeline, for one stream and for many.

One token takes the sum of the stages' times, which is least when the fastest hold all they can; many streams take
as long as the slowest stage, which is fastest when all take equally long. Between the two lie the shares that hold
the slowest stage to a limit and give, within it, as much as possible to the fastest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from coordinator.policy.filling import Stage, water_filled

MAX_SHARES = 200
"""Shares of single stages that are worked out at most for limits between the two extremes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """Blocks by stage, and what they take."""

    given: tuple[int, ...]
    sum_s: float
    """Of all stages for one token, without links."""
    slowest_s: float
    """Of the stage that takes longest."""


def evenest(n_blocks: int, stages: Sequence[Stage]) -> Shares | None:
    """The shares of which the slowest stage is fastest; None if the stages can't hold it all, each a block."""
    if not _can_hold(n_blocks, stages):
        return None
    given = water_filled(n_blocks, stages)
    slowest_s = max(stage.time_s(n) for n, stage in zip(given, stages, strict=True))
    return _within(n_blocks, stages, slowest_s)


def quickest(n_blocks: int, stages: Sequence[Stage]) -> Shares | None:
    """The shares that one token gets through fastest; None if the stages can't hold it all, each a block."""
    if not _can_hold(n_blocks, stages):
        return None
    return _within(n_blocks, stages, max(stage.time_s(n_blocks) for stage in stages))


def worthwhile(n_blocks: int, stages: Sequence[Stage]) -> Iterator[Shares]:
    """Shares from the evenest to the quickest: each one is better for one stream than those before it."""
    even, quick = evenest(n_blocks, stages), quickest(n_blocks, stages)
    if even is None or quick is None:
        return
    yield even
    limits = sorted(
        limit_s
        for limit_s in {s.time_s(n) for s in stages for n in range(1, min(s.cap, n_blocks) + 1)}
        if even.slowest_s < limit_s <= quick.slowest_s
    )
    best_s = even.sum_s
    for limit_s in limits[:: 1 + len(limits) * len(stages) // MAX_SHARES]:
        shares = _within(n_blocks, stages, limit_s)
        if shares.sum_s < best_s:
            best_s = shares.sum_s
            yield shares
    if quick.sum_s < best_s:
        yield quick


def _can_hold(n_blocks: int, stages: Sequence[Stage]) -> bool:
    return len(stages) <= n_blocks <= sum(stage.cap for stage in stages) and min(stage.cap for stage in stages) > 0


def _within(n_blocks: int, stages: Sequence[Stage], limit_s: float) -> Shares:
    """One block for each, and the rest to the fastest, none of which takes longer than the limit."""
    given, rest = [1] * len(stages), n_blocks - len(stages)
    for i in sorted(range(len(stages)), key=lambda i: stages[i].seconds_per_block):
        if rest == 0:
            break
        stage = stages[i]
        most = min(stage.cap, int((limit_s * (1 + 1e-9) - stage.fixed_s) / stage.seconds_per_block))
        more = min(rest, max(0, most - 1))
        given[i] += more
        rest -= more
    times = [stage.time_s(n) for n, stage in zip(given, stages, strict=True)]
    return Shares(given=tuple(given), sum_s=sum(times), slowest_s=max(times))
