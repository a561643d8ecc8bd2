"""What is printed is what can be worked out by hand."""

from __future__ import annotations

import pytest

from benchmarks.client_legs import Case, answer_ratio, office_cases, private_ratio, random_cases, said, unsaid
from coordinator.policy.segments import Segment
from protocol.ids import BlockRange, WorkerId

FAR, NEAR = WorkerId("w-0"), WorkerId("w-1")


def test_a_far_worker_is_paid_for_by_private_tokens_and_once_by_others() -> None:
    """10 blocks of 1 ms; of two that are alike the first is given, which is 40 ms away, the other one 1 ms."""
    segments = [
        Segment(worker_id=one, blocks=BlockRange(0, 10), seconds_per_block=0.001, link_s={}) for one in (FAR, NEAR)
    ]
    case = Case(segments=segments, n_blocks=10, ways={FAR: 0.04, NEAR: 0.001})
    client_s = 0.0005  # the model's own way to whoever is first in the ring
    given = unsaid(case)
    assert private_ratio(case, given) == pytest.approx((client_s + 0.08 + 0.01) / (client_s + 0.002 + 0.01))
    for is_connected, n_ways in ((True, 2), (False, 8)):
        took = (100 * 0.01 + n_ways * 0.04) / (100 * 0.01 + n_ways * 0.001)
        assert answer_ratio(case, given, is_connected=is_connected) == pytest.approx(took)
        assert answer_ratio(case, said(case, is_connected=is_connected), is_connected=is_connected) == 1.0
    assert private_ratio(case, said(case, is_private=True)) == 1.0
    near = Case(segments=segments, n_blocks=10, ways={FAR: 0.001, NEAR: 0.04})
    assert private_ratio(near, unsaid(near)) == answer_ratio(near, unsaid(near), is_connected=False) == 1.0


def test_no_best_route_is_worse_than_the_one_that_is_given() -> None:
    for case in (*random_cases(5, 1), *office_cases(5, 1)):
        assert private_ratio(case, unsaid(case)) >= 1.0 - 1e-9
        assert private_ratio(case, said(case, is_private=True)) >= 1.0 - 1e-9
        for is_connected in (True, False):
            for given in (unsaid(case), said(case, is_connected=is_connected)):
                assert answer_ratio(case, given, is_connected=is_connected) >= 1.0 - 1e-9
