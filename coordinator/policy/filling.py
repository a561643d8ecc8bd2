"""Water-filling: how many blocks each stage of a pipeline gets, so that the slowest is as fast as can be."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A worker as one stage of a pipeline."""

    seconds_per_block: float
    cap: int
    """Most blocks that it can be given now."""
    fixed_s: float = 0.0
    """What it takes beside the blocks that it is given: blocks that it runs already, and the model's end."""
    must_take_part: bool = True
    """Whether it gets a block at least, if there are as many blocks as stages."""

    def time_s(self, n_given: int) -> float:
        """Seconds for one token with so many blocks given."""
        return self.fixed_s + n_given * self.seconds_per_block


def water_filled(n_blocks: int, stages: Sequence[Stage]) -> tuple[int, ...]:
    """Blocks for each stage, in order: as many of `n_blocks` as the caps allow, the slowest stage's time minimal.

    Giving the blocks out one by one, each to the stage that would be done first with it, is optimal: a stage's
    time only rises with its blocks. Ties go to the earlier stage.
    """
    given = [0] * len(stages)
    takers = [i for i, stage in enumerate(stages) if stage.must_take_part and stage.cap > 0]
    # with more stages than blocks, the fastest take part
    takers.sort(key=lambda i: (stages[i].time_s(1), i))
    for i in takers[:n_blocks]:
        given[i] = 1
    _fill_up_to_level(n_blocks, stages, given)
    heap = [(stage.time_s(given[i] + 1), i) for i, stage in enumerate(stages) if given[i] < stage.cap]
    heapq.heapify(heap)
    for _ in range(n_blocks - sum(given)):
        if not heap:
            break
        _, i = heapq.heappop(heap)
        given[i] += 1
        if given[i] < stages[i].cap:
            heapq.heappush(heap, (stages[i].time_s(given[i] + 1), i))
    return tuple(given)


def _fill_up_to_level(n_blocks: int, stages: Sequence[Stage], given: list[int]) -> None:
    """Give at once what would come first one by one: all that is done by a time at which some blocks are left.

    With each round the level rises as far as the stages that aren't full would take it if blocks could be split;
    whole blocks make it less than one less for each of them.
    """
    level_s = 0.0
    while True:
        unfilled = [i for i, stage in enumerate(stages) if given[i] < stage.cap]
        rest = n_blocks - sum(given) - len(unfilled)
        if rest <= 0 or not unfilled:
            return
        level_s += rest / sum(1 / stages[i].seconds_per_block for i in unfilled)
        for i in unfilled:
            n_done = int((level_s - stages[i].fixed_s) / stages[i].seconds_per_block)
            given[i] = max(given[i], min(stages[i].cap, n_done))
        if n_blocks - sum(given) - len(unfilled) >= rest:
            return
