"""Of the segments of a large fleet those that the cheapest way may lead over: not hundreds need be looked at.

As if each worker were come to over the shortest link that leads there, what a way costs hangs on its blocks alone:
that is quick to work out in both directions, and never more than the truth. A segment over which even so nothing
leads that is as cheap as some real way is of no use. A way over more than one worker comes to each of them so, to
the first from the last; and the client's own way, as one that nobody measured, comes on top.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, repeat
from operator import add, sub
from typing import NamedTuple, Protocol

from coordinator.policy.links import LINK_S
from coordinator.policy.segments import Leg, Segment, cost_s
from protocol.ids import BlockRange, WorkerId

MAX_SHORTLIST = 40
"""Segments that are searched with their true links; of more the most promising."""

_FASTEST = 8
"""Workers that are looked at first, with those of the way that would be cheapest over the shortest links."""

_ROUNDING = 1e-9

Found = tuple[float, list[Leg]]
"""What a way costs, and the way."""


class Search(Protocol):
    """The search itself (`shortest_path`)."""

    def __call__(self, numbers: list[int], limit_s: float, *, is_rough: bool) -> Found | None:
        """The cheapest way over these segments that costs no more than the limit; None if none was found.

        `is_rough`: it needn't change workers but where a range starts or ends.
        """


def cheapest_of_many(segments: Sequence[Segment], n_blocks: int, search: Search) -> Found | None:
    """The cheapest way over the few that are worth a search. All together cover the blocks.

    It is the cheapest of all unless more than `MAX_SHORTLIST` may be part of that.
    """
    by_speed = sorted(range(len(segments)), key=lambda i: segments[i].seconds_per_block)
    entries = _entries(segments)
    onwards, legs = _to_go(segments, by_speed, entries, [segment.blocks for segment in segments])
    least_s = LINK_S + onwards[0]
    limit_s, known = min((cost_s(segments, way), way) for way in (legs, *_alone(segments, by_speed, n_blocks)))
    if limit_s <= _rounded_up(least_s):
        return limit_s, known
    few = {*by_speed[:_FASTEST], *(i for i, _, _ in (*legs, *known))}
    found = search(sorted(few), _rounded_up(limit_s), is_rough=True)
    if found is not None and found[0] <= _rounded_up(least_s):
        return found
    mirrored = [BlockRange(n_blocks - s.blocks.end, n_blocks - s.blocks.start) for s in segments]
    before = _to_go(segments, by_speed, entries, mirrored, is_mirrored=True)[0][::-1]
    limit_s = math.inf if found is None else _rounded_up(found[0])
    n_quick = bisect_right(
        by_speed,
        limit_s - LINK_S - min((entries[i] for i in by_speed if not segments[i].is_bound), default=0.0),
        key=lambda i: _least_through(segments[i].seconds_per_block, 0, n_blocks, before, onwards),
    )
    # who is too slow for any range is of use only for what it saves
    promising = [*by_speed[:n_quick], *(i for i in by_speed[n_quick:] if segments[i].is_bound)]
    through = [(LINK_S + entries[i] + _through(segments[i], before, onwards), i) for i in promising]
    best = {i for _, i in sorted(bound for bound in through if bound[0] <= limit_s)[:MAX_SHORTLIST]}
    best.update(i for i, _, _ in (legs if found is None else found[1]))
    return search(sorted(best), limit_s, is_rough=False)


def _rounded_up(seconds: float) -> float:
    """Costs may be less than nothing: for what a way saves."""
    return seconds + abs(seconds) * _ROUNDING


def _entries(segments: Sequence[Segment]) -> list[float]:
    """What it costs at least to come to each segment: the shortest link that leads there, and trust."""
    shortest_s: dict[WorkerId, float] = {}
    for segment in segments:
        for peer, seconds in segment.short_links:
            if seconds < shortest_s.get(peer, LINK_S):
                shortest_s[peer] = seconds
    return [shortest_s.get(segment.worker_id, LINK_S) + segment.entry_s for segment in segments]


def _alone(segments: Sequence[Segment], by_speed: Sequence[int], n_blocks: int) -> list[list[Leg]]:
    """The cheapest way over one worker that has all blocks, if anybody has."""
    whole = [i for i in by_speed if len(segments[i].blocks) == n_blocks]
    whole.sort(key=lambda i: segments[i].entry_s + n_blocks * segments[i].seconds_per_block + segments[i].after_s)
    return [[(i, 0, n_blocks)] for i in whole[:1]]


def _to_go(
    segments: Sequence[Segment],
    by_speed: Sequence[int],
    entries: Sequence[float],
    ranges: Sequence[BlockRange],
    *,
    is_mirrored: bool = False,
) -> tuple[list[float], list[Leg]]:
    """From each boundary at least what it costs to the end, entering included; and the legs from the beginning.

    `is_mirrored`: the ranges are counted from the model's end, so that a segment's beginning is where it is left.
    """
    n_blocks = max(blocks.end for blocks in ranges)
    ends_s = (segment.after_s for segment in segments if not is_mirrored and segment.blocks.end == n_blocks)
    to_go = [math.inf] * n_blocks + [min(ends_s, default=0.0)]
    first: list[Leg] = [(0, 0, 0)] * n_blocks
    loose = [(i, ranges[i].start, ranges[i].end) for i in by_speed if not segments[i].is_bound]
    bound = [_bound(segments[i], i, ranges[i], is_mirrored=is_mirrored) for i in by_speed if segments[i].is_bound]
    least_entry_s = min((entries[i] for i, _, _ in loose), default=0.0)
    reach = _reach(ranges, n_blocks)
    for cut in range(n_blocks - 1, -1, -1):
        for one in bound:
            if one.start <= cut < one.latest:
                run_s, to = _run_s(segments[one.i].seconds_per_block, to_go, cut, one.end, one.earliest)
                if entries[one.i] + run_s < to_go[cut]:
                    to_go[cut], first[cut] = entries[one.i] + run_s, (one.i, cut, to)
        for i, start, end in loose:
            if not start <= cut < end:
                continue
            seconds = segments[i].seconds_per_block
            # who comes now is slower than those before: with the longest range and best link, how good at best?
            least_s = _run_s(seconds, to_go, cut, reach[cut])[0]
            if to_go[cut] <= least_entry_s + least_s:
                break
            if to_go[cut] <= entries[i] + least_s:
                continue
            run_s, to = _run_s(seconds, to_go, cut, end)
            if run_s + entries[i] < to_go[cut]:
                to_go[cut], first[cut] = run_s + entries[i], (i, cut, to)
    return to_go, _followed(first)


class _Bound(NamedTuple):
    """A segment that can't be entered, or left, just anywhere."""

    i: int
    start: int
    latest: int
    """It is entered before this block."""
    earliest: int
    """It is left here or later."""
    end: int


def _bound(segment: Segment, i: int, blocks: BlockRange, *, is_mirrored: bool) -> _Bound:
    is_head, is_tail = segment.is_whole or segment.is_head, segment.is_whole or segment.is_tail
    enters_at_start, leaves_at_end = (is_tail, is_head) if is_mirrored else (is_head, is_tail)
    start, end = blocks.start, blocks.end
    return _Bound(i, start, start + 1 if enters_at_start else end, end if leaves_at_end else start + 1, end)


def _run_s(
    seconds_per_block: float, to_go: list[float], start: int, end: int, earliest: int = 0
) -> tuple[float, int]:
    """The least from `start` on if a worker of this speed runs up to `end` at most; and where it stops then.

    `earliest`: it has to run up to there.
    """
    if earliest == end:
        return (end - start) * seconds_per_block + to_go[end], end
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
    """The least that a way costs which leads over this segment for a block at least, but for entering it."""
    start, end, seconds = segment.blocks.start, segment.blocks.end, segment.seconds_per_block
    if segment.is_whole or (segment.is_head and segment.is_tail):
        return before[start] + (end - start) * seconds + onwards[end]
    if segment.is_head:
        return before[start] + min(n * seconds + onwards[start + n] for n in range(1, end - start + 1))
    if segment.is_tail:
        return min(before[end - n] + n * seconds for n in range(1, end - start + 1)) + onwards[end]
    return _least_through(seconds, start, end, before, onwards)


def _least_through(
    seconds_per_block: float, start: int, end: int, before: Sequence[float], onwards: Sequence[float]
) -> float:
    run_s = list(accumulate(repeat(seconds_per_block, end - start), initial=0.0))
    # by the last block: the least up to where the worker is entered, less what it would have run until then
    entered_s = accumulate(map(sub, before[start:end], run_s), min)
    left_s = map(add, onwards[start + 1 : end + 1], run_s[1:])
    least_s: float = min(map(add, entered_s, left_s))
    return least_s
