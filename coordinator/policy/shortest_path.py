"""The cheapest way round a model's blocks over ranges that may be entered and left partway. Knows no cluster.

Round, since each token goes back from the last worker to the first. First the cost to go and back, from the last
block backwards, as if others than the first could come twice: quick to compute, and never more than the truth. Led
by it the search forwards (A*) looks at hardly anything but the best way itself.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from typing import NamedTuple

from coordinator.policy.costs_to_go import CostsToGo
from coordinator.policy.links import LINK_S
from coordinator.policy.segments import DIGITS, Leg, Segment
from coordinator.policy.shortlist import MAX_SHORTLIST, Found, cheapest_of_many
from protocol.ids import WorkerId

MAX_STEPS = 10_000
"""Steps looked at to avoid a worker twice; over what most clusters need; 40 to 80 ms."""

MORE_STEPS = 4_000
"""Of those for something better than a way that is known: some 10 ms."""

MAX_LED_ON = 2
"""Ways that are led on from each boundary where a search gives up: with 80 of these 4 to 9 ms."""

MAX_BLOCKS_HELD = 1_000
"""Blocks that all ranges have together, up to which a route may change workers anywhere: a few milliseconds."""


class _Label(NamedTuple):
    """A way to a boundary; ordered by estimate, then how far it has come, fewer hops, and the way itself.

    So of ways that cost the same one is followed to its end, always the same.
    """

    rounded_s: float
    n_blocks_left: int
    n_hops: int
    legs: tuple[Leg, ...]
    cost_s: float
    entered_s: float
    """Cost up to where the last leg begins, its link included: a leg is multiplied out, not summed up by block."""
    estimate_s: float


def cheapest_legs(segments: Sequence[Segment], n_blocks: int) -> tuple[float, list[Leg]]:
    """The cheapest way from block 0 to `n_blocks` and back, which there must be one of, and its cost.

    The way from the client to its first worker counts too, as one that nobody measured. No worker comes twice,
    unless there is no other way (or finding one would take too long).
    """
    found = cheapest_once(segments, n_blocks, MAX_STEPS)
    if found is not None:
        return found
    label, cuts = None, _cuts(segments, n_blocks)
    if len(segments) > MAX_SHORTLIST:
        costs = CostsToGo(segments, n_blocks, cuts)
        label = _search(segments, n_blocks, costs, only_once=True, max_steps=MAX_STEPS)
    if label is None:
        costs = CostsToGo(segments, n_blocks, cuts, only_once=False)
        label = _search(segments, n_blocks, costs, only_once=False)
    assert label is not None, "the blocks are covered, so there is a way"
    return label.estimate_s, list(label.legs)


def cheapest_once(segments: Sequence[Segment], n_blocks: int, max_steps: int) -> Found | None:
    """The cheapest way on which no worker comes twice; None if none was found. Beyond so many steps a good one."""

    def search(numbers: list[int], limit_s: float, *, is_rough: bool) -> Found | None:
        few = [segments[i] for i in numbers]
        costs = CostsToGo(few, n_blocks, _ends(few) if is_rough else _cuts(few, n_blocks))
        steps = max_steps if math.isinf(limit_s) else min(max_steps, MORE_STEPS)
        found = _search(few, n_blocks, costs, only_once=True, limit_s=limit_s, max_steps=steps)
        return None if found is None else (found.estimate_s, [(numbers[i], a, b) for i, a, b in found.legs])

    if len(segments) > MAX_SHORTLIST:
        return cheapest_of_many(segments, n_blocks, search)
    return search(list(range(len(segments))), math.inf, is_rough=False)


def _search(
    segments: Sequence[Segment],
    n_blocks: int,
    costs: CostsToGo,
    *,
    only_once: bool,
    limit_s: float = math.inf,
    max_steps: float = math.inf,
) -> _Label | None:
    """A* over boundary and segment; with `only_once` over sets of used workers too, which may take long.

    None too if each way costs more than `limit_s`. After `max_steps` a good way rather than the cheapest.
    """
    heap = [_Label(0.0, n_blocks, 0, (), 0.0, 0.0, 0.0)]
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
        longer = _longer(segments, costs, label, used, limit_s=limit_s)
        n_steps += len(longer)
        for step in longer:
            heapq.heappush(heap, step)
    return _led_on(segments, n_blocks, costs, heap, limit_s)


def _led_on(
    segments: Sequence[Segment], n_blocks: int, costs: CostsToGo, begun: Sequence[_Label], limit_s: float
) -> _Label | None:
    """The best of the ways that were begun, led on to the end with few at each boundary; None if all are dead ends.

    Few that end on different segments: those that are best are mostly alike (beam search).
    """
    at: dict[int, list[_Label]] = {}
    for label in begun:
        at.setdefault(label.legs[-1][2], []).append(label)
    cut = min(at, default=n_blocks)
    while cut < n_blocks:
        by_last = {label.legs[-1][0]: label for label in sorted(at.get(cut, ()), reverse=True)}
        cut = costs.after(cut)
        for label in heapq.nsmallest(MAX_LED_ON, by_last.values()):
            used = frozenset(segments[i].worker_id for i, _, _ in label.legs)
            at.setdefault(cut, []).extend(_longer(segments, costs, label, used, limit_s=limit_s))
    return min(at.get(n_blocks, ()), default=None)


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
    costs: CostsToGo,
    label: _Label,
    used: frozenset[WorkerId],
    *,
    limit_s: float,
) -> list[_Label]:
    """The ways on to the next cut: on the same worker, or on any other that holds what comes."""
    last, begun, start = label.legs[-1] if label.legs else (None, 0, 0)
    cut = costs.after(start)
    longer = []

    def go(i: int, legs: tuple[Leg, ...], entered_s: float, n_hops: int) -> None:
        cost_s = entered_s + (cut - legs[-1][1]) * segments[i].seconds_per_block
        estimate_s = cost_s + costs.round_s(cut, legs[0][0])[i]
        if estimate_s < math.inf and estimate_s <= limit_s:
            rounded_s = round(estimate_s, DIGITS)
            longer.append(_Label(rounded_s, -cut, n_hops, legs, cost_s, entered_s, estimate_s))

    if last is not None and start < segments[last].blocks.end:
        go(last, (*label.legs[:-1], (last, begun, cut)), label.entered_s, label.n_hops)
    if last is None or segments[last].can_be_left(start):
        links = segments[last].link_s if last is not None else {}
        for i in costs.enterable(start):
            worker_id = segments[i].worker_id
            if i != last and worker_id not in used:
                entered_s = label.cost_s + links.get(worker_id, LINK_S) + segments[i].entry_s
                go(i, (*label.legs, (i, start, cut)), entered_s, label.n_hops + 1)
    return longer
