"""The cheapest way round a model's blocks over ranges that may be entered and left partway. Knows no cluster.

Round, since each token goes back from the last worker to the first. First the cost to go, from the last block
backwards, as if a worker could come twice: it is quick to compute, and never more than the truth. Led by it, and by
the shortest way back there could be, the search forwards (A*) looks at hardly anything but the best way itself.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from coordinator.policy.links import LINK_S
from coordinator.policy.segments import CLIENT, Leg, Segment, back_s
from coordinator.policy.shortlist import MAX_SHORTLIST, Found, cheapest_of_many
from protocol.ids import WorkerId

MAX_STEPS = 50_000
"""Steps looked at to avoid a worker twice; far over what a real cluster needs, a fraction of a second."""

MAX_BLOCKS_HELD = 1_000
"""Blocks that all ranges have together, up to which a route may change workers anywhere: a few milliseconds."""


class _Label(NamedTuple):
    """A way to a boundary; ordered by estimate, then fewer hops, then the way itself, so ties are settled."""

    estimate_s: float
    n_hops: int
    legs: tuple[Leg, ...]
    cost_s: float
    entered_s: float
    """Cost up to where the last leg begins, its link included: a leg is multiplied out, not summed up by block."""


class _ToGo(NamedTuple):
    """At least what it costs from a boundary to the end, without the way back."""

    cost_s: float
    tail: WorkerId | None
    """Who is last on that way, the client aside; None if it isn't told."""
    other_s: float
    """What it costs if anybody else is last; as much, if it isn't told."""


_NOWHERE = _ToGo(math.inf, None, math.inf)


class _CostsToGo:
    """For each boundary and each segment that ends or goes on there: at least what it costs from there on."""

    def __init__(self, segments: Sequence[Segment], n_blocks: int, cuts: list[int]) -> None:
        self.cuts = cuts
        self._segments, self._n_blocks = segments, n_blocks
        self._back: dict[tuple[int, bool], float] = {}
        self._longer_back: dict[tuple[int, int], float] = {}
        self.onwards: dict[int, list[tuple[float, int, _ToGo]]] = {}
        """At each boundary the segments that run what comes next: cost to the end with entering, cheapest first."""
        self._staying: dict[tuple[int, int], _ToGo] = {}
        self._from: dict[tuple[int, int], _ToGo] = {}
        # where ends cost something of their own, who is cheap as both would seem to be one end of others' ways
        tells_tails = any(segment.is_head or segment.is_tail for segment in segments)
        self._shortest_s = [min((s for _, s in segment.short_links), default=LINK_S) for segment in segments]
        self._n_run = min((s.blocks.start for s in segments if s.worker_id == CLIENT), default=n_blocks)
        for i, segment in enumerate(segments):
            if segment.blocks.end == n_blocks:
                tail, other_s = (segment.worker_id, math.inf) if tells_tails else (None, segment.after_s)
                self._from[n_blocks, i] = _ToGo(segment.after_s, tail, other_s)
        for cut, after in reversed(list(zip(self.cuts, self.cuts[1:], strict=False))):
            self._settle(segments, cut, after)

    def round(self, cut: int, i: int, first: int, *, only_once: bool) -> float:
        """From `cut`, to which segment `i` has run, and back to segment `first`."""
        if cut == self._n_blocks:
            return self._segments[i].after_s + back_s(self._segments[i], self._segments[first])
        if (first, only_once) not in self._back:
            self._back[first, only_once] = self._least_back_s(self._segments[first], only_once=only_once)
        to_go, segment = self._from[cut, i], self._segments[i]
        comes_twice = only_once and to_go.tail == self._segments[first].worker_id
        around_s = (to_go.other_s if comes_twice else to_go.cost_s) + self._back[first, only_once]
        if i != first or segment.blocks.end != self._n_run:
            return around_s
        alone_s = (self._n_run - cut) * segment.seconds_per_block + self._from[self._n_run, i].cost_s
        # who goes on to the end alone has no way back, but for a client that is a stage itself
        return min(around_s, alone_s if self._n_run == self._n_blocks else alone_s + self._back[first, only_once])

    def longer_back_s(self, first: int, other: int) -> float:
        """By how much at most the way back to segment `first` is longer than that to `other`, whoever is last."""
        if first == other:
            return 0.0
        if (first, other) not in self._longer_back:
            a, b = self._segments[first], self._segments[other]
            self._longer_back[first, other] = max(
                back_s(tail, a) - back_s(tail, b)
                for tail in self._segments
                if tail.blocks.end == self._n_blocks and tail.worker_id != b.worker_id
            )
        return self._longer_back[first, other]

    def _least_back_s(self, first: Segment, *, only_once: bool) -> float:
        tails = (s for s in self._segments if s.blocks.end == self._n_blocks)
        if only_once:
            tails = (s for s in tails if s.worker_id != first.worker_id)
        return min((back_s(tail, first) for tail in tails), default=math.inf)

    def _settle(self, segments: Sequence[Segment], cut: int, after: int) -> None:
        entering = []
        for i, segment in enumerate(segments):
            if segment.blocks.start <= cut < segment.blocks.end:
                (to_go_s, tail, other_s), run_s = self._from[after, i], (after - cut) * segment.seconds_per_block
                self._staying[cut, i] = _ToGo(run_s + to_go_s, tail, run_s + other_s)
                if segment.can_be_entered(cut):
                    entering.append((run_s + to_go_s + segment.entry_s, i, self._staying[cut, i]))
        entering.sort()
        self.onwards[cut] = entering
        for i, segment in enumerate(segments):
            if segment.blocks.start < cut <= segment.blocks.end:
                self._from[cut, i] = self._cheapest_from(segments, cut, i)

    def _cheapest_from(self, segments: Sequence[Segment], cut: int, i: int) -> _ToGo:
        least_s, tail, other_s = best = self._staying.get((cut, i), _NOWHERE)
        if not segments[i].can_be_left(cut):
            return best
        links = segments[i].link_s
        for enter_s, k, onwards in self.onwards[cut]:
            if enter_s + self._shortest_s[i] >= other_s:
                break  # before the segment itself, too: no link is less than nothing
            to = segments[k]
            way_s = enter_s + (link_s := links.get(to.worker_id, LINK_S))
            way_tail = onwards.tail if to.worker_id != CLIENT else segments[i].worker_id
            if way_tail != tail and way_s >= least_s:
                other_s = min(other_s, way_s)
                continue
            way_other_s = to.entry_s + link_s + onwards.other_s
            other_s = min(other_s if way_tail == tail else least_s, way_other_s)
            least_s, tail = min(least_s, way_s), way_tail
        return _ToGo(least_s, tail, other_s)


def cheapest_legs(segments: Sequence[Segment], n_blocks: int) -> tuple[float, list[Leg]]:
    """The cheapest way from block 0 to `n_blocks` and back, which there must be one of, and its cost.

    The way from the client to its first worker counts too, as one that nobody measured. No worker comes twice,
    unless there is no other way (or finding one would take too long).
    """
    found = cheapest_once(segments, n_blocks, MAX_STEPS)
    if found is not None:
        return found
    costs = _CostsToGo(segments, n_blocks, _cuts(segments, n_blocks))
    label = None
    if len(segments) > MAX_SHORTLIST:
        label = _search(segments, n_blocks, costs, only_once=True, max_steps=MAX_STEPS)
    label = label or _search(segments, n_blocks, costs, only_once=False)
    assert label is not None, "the blocks are covered, so there is a way"
    return label.estimate_s, list(label.legs)


def cheapest_once(segments: Sequence[Segment], n_blocks: int, max_steps: int) -> Found | None:
    """The cheapest way on which no worker comes twice; None if none was found in so many steps."""

    def search(numbers: list[int], limit_s: float, *, is_rough: bool) -> Found | None:
        few = [segments[i] for i in numbers]
        costs = _CostsToGo(few, n_blocks, _ends(few) if is_rough else _cuts(few, n_blocks))
        found = _search(few, n_blocks, costs, only_once=True, limit_s=limit_s, max_steps=max_steps)
        return None if found is None else (found.estimate_s, [(numbers[i], a, b) for i, a, b in found.legs])

    if len(segments) > MAX_SHORTLIST:
        return cheapest_of_many(segments, n_blocks, search)
    return search(list(range(len(segments))), math.inf, is_rough=False)


def _search(
    segments: Sequence[Segment],
    n_blocks: int,
    costs: _CostsToGo,
    *,
    only_once: bool,
    limit_s: float = math.inf,
    max_steps: float = math.inf,
) -> _Label | None:
    """A* over boundary and segment; with `only_once` over sets of used workers too, which may take long.

    None too if each way costs more than `limit_s`, or after `max_steps`.
    """
    heap = [_Label(0.0, 0, (), 0.0, 0.0)]
    settled: dict[tuple[int, int], list[tuple[frozenset[WorkerId], float, int]]] = {}
    n_steps = 0
    while heap and n_steps <= max_steps:
        label = heapq.heappop(heap)
        used: frozenset[WorkerId] = frozenset()
        if label.legs:
            last, _, end = label.legs[-1]
            if end == n_blocks:
                return label
            if only_once:
                used = frozenset(segments[i].worker_id for i, _, _ in label.legs)
            first = label.legs[0][0]
            earlier = settled.setdefault((end, last), [])
            if any(
                others <= used and cost_s + costs.longer_back_s(begun, first) <= label.cost_s
                for others, cost_s, begun in earlier
            ):
                continue
            earlier.append((used, label.cost_s, first))
        longer = _longer(segments, costs, label, used, only_once=only_once, limit_s=limit_s)
        n_steps += len(longer)
        for step in longer:
            heapq.heappush(heap, step)
    return None


def _cuts(segments: Sequence[Segment], n_blocks: int) -> list[int]:
    """Where a route may change workers: anywhere, or in a large fleet only where some range starts or ends.

    The latter loses nothing unless a detour over a third worker is faster than the direct link.
    """
    if sum(len(segment.blocks) for segment in segments) <= MAX_BLOCKS_HELD:
        return list(range(n_blocks + 1))
    return _ends(segments)


def _ends(segments: Sequence[Segment]) -> list[int]:
    """Where a range starts or ends; the model's own ends among them, since the ranges cover it."""
    return sorted({block for segment in segments for block in (segment.blocks.start, segment.blocks.end)})


def _longer(
    segments: Sequence[Segment],
    costs: _CostsToGo,
    label: _Label,
    used: frozenset[WorkerId],
    *,
    only_once: bool,
    limit_s: float,
) -> list[_Label]:
    """The ways on to the next cut: on the same worker, or on any other that holds what comes."""
    last, begun, start = label.legs[-1] if label.legs else (None, 0, 0)
    cut = costs.cuts[bisect_right(costs.cuts, start)]
    longer = []

    def go(i: int, legs: tuple[Leg, ...], entered_s: float, n_hops: int) -> None:
        cost_s = entered_s + (cut - legs[-1][1]) * segments[i].seconds_per_block
        estimate_s = cost_s + costs.round(cut, i, legs[0][0], only_once=only_once)
        if estimate_s < math.inf and estimate_s <= limit_s:
            longer.append(_Label(estimate_s, n_hops, legs, cost_s, entered_s))

    if last is not None and start < segments[last].blocks.end:
        go(last, (*label.legs[:-1], (last, begun, cut)), label.entered_s, label.n_hops)
    if last is None or segments[last].can_be_left(start):
        links = segments[last].link_s if last is not None else {}
        for onwards_s, i, _ in costs.onwards[start]:
            if label.cost_s + onwards_s > limit_s:
                break
            worker_id = segments[i].worker_id
            if i != last and worker_id not in used:
                entered_s = label.cost_s + links.get(worker_id, LINK_S) + segments[i].entry_s
                go(i, (*label.legs, (i, start, cut)), entered_s, label.n_hops + 1)
    return longer
