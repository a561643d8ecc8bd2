from __future__ import annotations

from hypothesis import given, settings

from coordinator.policy.costs_to_go import CostsToGo
from coordinator.policy.coverage import counts, gaps
from coordinator.policy.links import LINK_S
from coordinator.policy.segments import Segment, cost_s
from coordinator.policy.shortest_path import cheapest_once
from tests.coordinator.policy.test_shortest_path import N_BLOCKS, segment_lists


@settings(max_examples=200, deadline=None)
@given(segments=segment_lists())
def test_from_each_leg_of_the_cheapest_way_on_it_is_never_more_than_the_rest_of_it(segments: list[Segment]) -> None:
    if gaps(counts((segment.blocks for segment in segments), N_BLOCKS)):
        return
    found = cheapest_once(segments, N_BLOCKS, 50_000)
    if found is None:
        return
    costs = CostsToGo(segments, N_BLOCKS, list(range(N_BLOCKS + 1)))
    (first, _, _), so_far_s = found[1][0], LINK_S
    for k, (i, start, end) in enumerate(found[1]):
        so_far_s += segments[i].entry_s + (end - start) * segments[i].seconds_per_block
        to_go_s = costs.round_s(end, first)[i]
        assert so_far_s + to_go_s <= found[0] + 1e-9
        if k + 1 < len(found[1]):
            so_far_s += segments[i].link_s.get(segments[found[1][k + 1][0]].worker_id, LINK_S)
    assert abs(cost_s(segments, found[1]) - found[0]) < 1e-9
