from __future__ import annotations

from worker.batch_bounds import LEAST_PIECE_TOKENS, BatchBounds, batch_bounds
from worker.batch_costs import BatchCosts
from worker.batching import GroupSize
from worker.fairness import Tenant

A, B = Tenant("a"), Tenant("b")
COSTS = BatchCosts().with_batch(1, 1.0).with_batch(8, 2.0).with_batch(128, 17.0)
"""An eighth of a second for each token after the eighth."""


def test_two_keys_of_a_class_bear_three_times_what_the_one_with_fewer_streams_takes() -> None:
    bounds = batch_bounds({A: 50, B: 1}, 2.0, COSTS)
    assert bounds.least() == B
    assert bounds.n_tokens(512) == 16
    assert bounds.group(GroupSize(least=25, most=26), has_prompts=False) == GroupSize(least=16, most=16)
    assert bounds.group(GroupSize(least=25, most=26), has_prompts=True) == GroupSize(least=8, most=8)
    assert bounds.group(GroupSize(least=2, most=3), has_prompts=True) == GroupSize(least=2, most=3)


def test_nothing_is_bounded_where_nothing_is_measured_or_nobody_decodes() -> None:
    for bounds in (BatchBounds(), batch_bounds({A: 50, B: 1}, 2.0, BatchCosts()), batch_bounds({}, 2.0, COSTS)):
        assert bounds.least() is None
        assert bounds.n_tokens(512) == 512
        assert bounds.piece_tokens(A, 128) == 128


def test_a_piece_of_a_prompt_is_as_long_as_others_streams_can_bear() -> None:
    bounds = batch_bounds({A: 50, B: 1}, 2.0, COSTS)
    assert bounds.piece_tokens(A, 128) == LEAST_PIECE_TOKENS
    assert bounds.piece_tokens(B, 128) == 128, "its own stream isn't somebody else's"
    assert bounds.piece_tokens(A, 16) == 16
