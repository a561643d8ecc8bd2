from __future__ import annotations

import pytest

from coordinator.policy.modelled import speed_of
from coordinator.policy.segments import Segment
from protocol.ids import BlockRange, WorkerId


def segment(name: str, start: int, end: int, seconds: float, **links: float) -> Segment:
    link_s = {WorkerId(to): s for to, s in links.items()}
    return Segment(
        worker_id=WorkerId(name), blocks=BlockRange(start, end), seconds_per_block=seconds, link_s=link_s
    )


def test_one_stream_goes_round_and_many_are_as_fast_as_the_block_that_is_held_worst() -> None:
    pair = [segment("a", 0, 2, 1.0, b=0.1), segment("b", 2, 4, 2.0, a=0.2)]
    speed = speed_of(pair, 4)
    assert speed is not None
    assert speed.step_s == pytest.approx(2.0 + 4.0 + 0.1 + 0.2)
    assert speed.tokens_per_s == pytest.approx(1 / 4)
    assert speed.stages == (("a", BlockRange(0, 2)), ("b", BlockRange(2, 4)))

    alone = speed_of([*pair, segment("c", 0, 4, 1.0)], 4)
    assert alone is not None
    assert alone.step_s == pytest.approx(4.0)
    assert alone.tokens_per_s == pytest.approx(1 / 4 + 1 / 4)


def test_what_leaves_blocks_out_has_no_speed() -> None:
    assert speed_of([segment("a", 0, 2, 1.0)], 4) is None
