"""Of the segments of a large fleet those that the cheapest way may lead over: not hundreds need be looked at.

As if each worker were come to over the shortest link that leads there, what a way costs hangs on its blocks alone:
that is quick to work out in both directions, and never more than the truth. A segment over which even so nothing
leads that is as cheap as some real way is of no use. A way over more than one worker comes to each of them so, to
the first from the last; and the client's own way, as one that nobody measured, comes on top.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from heapq import nsmallest
from typing import Protocol

from coordinator.policy.least_costs import LeastCosts
from coordinator.policy.links import LINK_S
from coordinator.policy.segments import CLIENT, Leg, Segment, cost_s
from protocol.ids import WorkerId

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
    costs = LeastCosts(segments, _entries(segments), n_blocks)
    legs, least_s = costs.legs(), LINK_S + float(costs.onwards_s[0])
    known = min((cost_s(segments, way), way) for way in (legs, *_alone(segments, n_blocks)))
    if known[0] <= _rounded_up(least_s):
        return known
    by_speed = nsmallest(_FASTEST, range(len(segments)), key=lambda i: segments[i].seconds_per_block)
    few = {*by_speed, *(i for i, _, _ in (*legs, *known[1]))}
    found = search(sorted(few), _rounded_up(known[0]), is_rough=True) or known
    if found[0] <= _rounded_up(least_s):
        return found
    limit_s = _rounded_up(found[0])
    best = set(costs.cheapest_through(limit_s - LINK_S, MAX_SHORTLIST))
    best.update(i for i, _, _ in found[1])
    # none where the search gives up, and what it has begun are dead ends
    return search(sorted(best), limit_s, is_rough=False) or (found if found[0] < math.inf else None)


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


def _alone(segments: Sequence[Segment], n_blocks: int) -> list[list[Leg]]:
    """The cheapest way over one worker that has all blocks, if anybody has. The client may be a stage after it."""
    client = next(((i, one.blocks.start) for i, one in enumerate(segments) if one.worker_id == CLIENT), None)
    n_run = n_blocks if client is None else client[1]

    def alone_s(i: int) -> tuple[float, float]:
        one = segments[i]
        after_s = one.after_s if client is None else 0.0
        return one.entry_s + n_run * one.seconds_per_block + after_s, one.seconds_per_block

    i = min((i for i, one in enumerate(segments) if len(one.blocks) == n_run), key=alone_s, default=None)
    if i is None:
        return []
    return [[(i, 0, n_run), *([] if client is None else [(client[0], n_run, n_blocks)])]]
