"""Against every way there is: never more than the cheapest one, and no segment of that is left out."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings

from coordinator.policy.coverage import counts, gaps
from coordinator.policy.least_costs import LeastCosts
from coordinator.policy.links import LINK_S
from coordinator.policy.segments import Segment, cost_s
from coordinator.policy.shortest_path import cheapest_once
from coordinator.policy.shortlist import _entries
from protocol.ids import BlockRange, WorkerId
from tests.coordinator.policy.test_shortest_path import N_BLOCKS, segment_lists


@settings(max_examples=200, deadline=None)
@given(segments=segment_lists())
def test_no_way_costs_less_and_the_best_one_leads_over_segments_that_are_kept(segments: list[Segment]) -> None:
    if gaps(counts((segment.blocks for segment in segments), N_BLOCKS)):
        return
    costs = LeastCosts(segments, _entries(segments), N_BLOCKS)
    legs = costs.legs()
    assert [start for _, start, _ in legs] == [0, *(end for _, _, end in legs[:-1])]
    assert legs[-1][2] == N_BLOCKS
    found = cheapest_once(segments, N_BLOCKS, 50_000)
    if found is None:
        return
    # a way over one worker alone has no link but the client's
    slack = 1e-9 + (LINK_S if len(found[1]) == 1 else 0.0)
    assert LINK_S + costs.onwards_s[0] <= found[0] + slack
    kept = costs.cheapest_through(found[0] - LINK_S + slack, len(segments))
    assert {i for i, _, _ in found[1]} <= set(kept)


def test_of_those_that_cost_the_same_the_first_are_kept() -> None:
    alike = [
        Segment(worker_id=WorkerId(f"w{i}"), blocks=BlockRange(0, 80), seconds_per_block=0.001, link_s={})
        for i in range(9)
    ]
    costs = LeastCosts(alike, _entries(alike), 80)
    assert costs.cheapest_through(math.inf, 3) == [0, 1, 2]
    assert costs.onwards_s[0] == pytest.approx(cost_s(alike, costs.legs()))
