"""Of the segments of a large fleet those that the cheapest way may lead over: not hundreds need be looked at.

As if every link took as long as the shortest of all, what a way costs hangs on blocks alone: that is quick to work
out in both directions, and never more than the truth. A segment over which even so nothing leads that is as cheap
as some real way is of no use. A way over more than one worker has one link more than that, back to the first.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from operator import add

from coordinator.policy.segments import Leg, Segment
from protocol.ids import BlockRange

MAX_SHORTLIST = 40
"""Segments that are searched with their true links; of more the most promising."""

_ROUNDING = 1 + 1e-9


def shortlist(segments: Sequence[Segment], n_blocks: int, cost_of: Callable[[list[Leg]], float]) -> list[int]:
    """Which segments, by number, are worth a search. They cover all blocks, as `segments` must.

    All that can be part of the cheapest way are among them if they are fewer than `MAX_SHORTLIST`.
    """
    link_s = min(segment.least_link_s for segment in segments)
    onwards, legs = _to_go(segments, [segment.blocks for segment in segments], n_blocks, link_s)
    limit_s = cost_of(legs) * _ROUNDING
    has_whole = any(len(segment.blocks) == n_blocks for segment in segments)
    if limit_s <= (onwards[0] + (0.0 if has_whole else link_s)) * _ROUNDING**2:
        return sorted({i for i, _, _ in legs})
    mirrored = [BlockRange(n_blocks - s.blocks.end, n_blocks - s.blocks.start) for s in segments]
    before = _to_go(segments, mirrored, n_blocks, link_s)[0][::-1]
    by_speed = sorted(range(len(segments)), key=lambda i: segments[i].seconds_per_block)
    n_quick = bisect_right(
        by_speed,
        limit_s,
        key=lambda i: _least_through(segments[i].seconds_per_block, 0, n_blocks, before, onwards) + link_s,
    )
    # who is too slow for any range is of use only for what it saves
    promising = [*by_speed[:n_quick], *(i for i in by_speed[n_quick:] if segments[i].is_whole)]
    through = [
        (_through(segments[i], before, onwards) + (1 if len(segments[i].blocks) == n_blocks else 2) * link_s, i)
        for i in promising
    ]
    best = sorted(bound for bound in through if bound[0] <= limit_s)[:MAX_SHORTLIST]
    return sorted({i for _, i in best}.union(i for i, _, _ in legs))


def _to_go(
    segments: Sequence[Segment], ranges: Sequence[BlockRange], n_blocks: int, link_s: float
) -> tuple[list[float], list[Leg]]:
    """From each boundary at least what it costs to the end, a link first; and the legs from the beginning."""
    to_go = [math.inf] * n_blocks + [0.0]
    first: list[Leg] = [(0, 0, 0)] * n_blocks
    by_speed = sorted(range(len(segments)), key=lambda i: (segments[i].seconds_per_block, -ranges[i].end))
    loose = [(i, ranges[i].start, ranges[i].end) for i in by_speed if not segments[i].is_whole]
    whole = [(i, ranges[i].start, ranges[i].end) for i in by_speed if segments[i].is_whole]
    reach = _reach(ranges, n_blocks)
    for cut in range(n_blocks - 1, -1, -1):
        for i, start, end in whole:
            if start == cut:
                whole_s = segments[i].entry_s + (end - start) * segments[i].seconds_per_block + to_go[end]
                if whole_s < to_go[cut]:
                    to_go[cut], first[cut] = whole_s, (i, cut, end)
        for i, start, end in loose:
            if not start <= cut < end:
                continue
            segment = segments[i]
            # who comes now is slower than those before: with the longest range and no trust lost, how good at best?
            if to_go[cut] <= _run_s(segment.seconds_per_block, to_go, cut, reach[cut])[0]:
                break
            run_s, to = _run_s(segment.seconds_per_block, to_go, cut, end)
            if run_s + segment.entry_s < to_go[cut]:
                to_go[cut], first[cut] = run_s + segment.entry_s, (i, cut, to)
        to_go[cut] += link_s
    return to_go, _followed(first)


def _run_s(seconds_per_block: float, to_go: list[float], start: int, end: int) -> tuple[float, int]:
    """The least from `start` on if a worker of this speed runs up to `end` at most; and where it stops then."""
    steps = accumulate([seconds_per_block] * (end - start))
    costs = list(map(add, to_go[start + 1 : end + 1], steps))
    least_s = min(costs)
    return least_s, start + 1 + costs.index(least_s)


def _reach(ranges: Sequence[BlockRange], n_blocks: int) -> list[int]:
    """For each block, the end of the range that leads farthest from it."""
    furthest = [0] * n_blocks
    for blocks in ranges:
        furthest[blocks.start] = max(furthest[blocks.start], blocks.end)
    return list(accumulate(furthest, max))


def _followed(first: Sequence[Leg]) -> list[Leg]:
    legs, cut = [], 0
    while cut < len(first):
        legs.append(first[cut])
        cut = legs[-1][2]
    return legs


def _through(segment: Segment, before: Sequence[float], onwards: Sequence[float]) -> float:
    """The least that a way costs which leads over this segment for a block at least, but for the link to it."""
    start, end, seconds = segment.blocks.start, segment.blocks.end, segment.seconds_per_block
    if segment.is_whole:
        return segment.entry_s + before[start] + (end - start) * seconds + onwards[end]
    return segment.entry_s + _least_through(seconds, start, end, before, onwards)


def _least_through(
    seconds_per_block: float, start: int, end: int, before: Sequence[float], onwards: Sequence[float]
) -> float:
    best = reached = math.inf
    for i in range(start, end):
        reached = min(reached, before[i]) + seconds_per_block
        best = min(best, reached + onwards[i + 1])
    return best
