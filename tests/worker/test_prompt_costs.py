from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.prompt_costs import PieceBounds, PromptCosts, RunStep, StepCost, done_s, soonest_pieces

BOUNDS = PieceBounds(least_tokens=32, grain=16, short_tokens=128, most_tokens=512, longest_s=0.5)
COST = StepCost(base=0.008, per_token=0.75e-3, per_pair=0.55e-6)


def even_pieces(n_tokens: int, n_pieces: int) -> list[range]:
    ends = [n_tokens * i // n_pieces for i in range(n_pieces + 1)]
    return [range(start, end) for start, end in pairwise(ends) if start < end]


def learned(cost: StepCost, base_s: float | None, pieces: list[range], seed: int) -> PromptCosts:
    """What is known after three prompts in these pieces, on a machine that does other things too."""
    noise, costs = random.Random(seed), PromptCosts(base_s)
    for _ in range(3):
        for piece in pieces:
            seconds = cost.seconds(len(piece), piece.start) * noise.choice([1, 1, 1, 1.02, 1.1, 1.5])
            costs = costs.with_step(RunStep(len(piece), piece.start, seconds))
    return costs


@given(
    positions=st.tuples(st.integers(0, 4000), st.integers(1, 4000)).map(lambda p: range(p[0], sum(p))),
    later=st.lists(st.sampled_from([1, 2, 5]), max_size=5),
    base=st.sampled_from([0.0, 1e-4, 0.008, 0.5]),
    per_token=st.sampled_from([1e-7, 0.75e-3, 0.1]),
    per_pair=st.sampled_from([0.0, 0.55e-6, 1e-3]),
)
def test_pieces_are_the_prompt_and_keep_to_the_bounds(
    positions: range, later: list[int], base: float, per_token: float, per_pair: float
) -> None:
    cost = StepCost(base=base, per_token=per_token, per_pair=per_pair)
    stages = [cost.of_blocks(share) for share in (1, *later)]
    pieces = soonest_pieces(stages, positions, bounds=BOUNDS)
    assert [position for piece in pieces for position in piece] == list(positions)
    for piece in pieces[:-1]:
        assert BOUNDS.least_tokens <= len(piece) <= BOUNDS.most_tokens
        assert len(piece) % BOUNDS.grain == 0
        assert len(piece) <= BOUNDS.short_tokens or cost.seconds(len(piece), piece.start) <= BOUNDS.longest_s


@pytest.mark.parametrize("n_stages", [2, 3, 5])
@pytest.mark.parametrize("n_tokens", [128, 500, 1024, 3000])
def test_no_even_pieces_are_done_much_sooner(n_tokens: int, n_stages: int) -> None:
    chosen = done_s([COST] * n_stages, soonest_pieces([COST] * n_stages, range(n_tokens), bounds=BOUNDS))
    others = [even_pieces(n_tokens, n) for n in range(1, 80) if n_tokens // n >= BOUNDS.least_tokens]
    assert chosen <= 1.02 * min(done_s([COST] * n_stages, pieces) for pieces in others)


def test_a_prompt_for_one_worker_takes_as_few_pieces_as_others_can_wait_for() -> None:
    pieces = soonest_pieces([COST], range(1024), bounds=BOUNDS)
    assert len(pieces) <= 4
    assert all(COST.seconds(len(piece), piece.start) <= BOUNDS.longest_s for piece in pieces)


@pytest.mark.parametrize("n_stages", [1, 2, 4])
@pytest.mark.parametrize("positions", [range(512), range(500), range(129), range(33), range(700, 801)])
def test_where_launching_is_what_takes_time_a_prompt_stays_whole(positions: range, n_stages: int) -> None:
    gpu = StepCost(base=0.01, per_token=1e-6)
    assert soonest_pieces([gpu] * n_stages, positions, bounds=BOUNDS) == [positions]


@pytest.mark.parametrize("n_tokens", [33, 100, 129, 200, 300, 500])
def test_one_worker_takes_a_prompt_whole_if_others_can_wait_for_it(n_tokens: int) -> None:
    assert soonest_pieces([COST], range(n_tokens), bounds=BOUNDS) == [range(n_tokens)]


def test_a_long_prompt_is_cut_in_a_moment() -> None:
    pieces = soonest_pieces([COST] * 4, range(200_000), bounds=BOUNDS)
    assert pieces[-1].stop == 200_000


@pytest.mark.parametrize("n_tokens", [100, 1024, 4000, 20_000])
@pytest.mark.parametrize("n_later", [1, 3, 7])
def test_a_cut_for_unlike_stages_is_found_after_a_few_tries(n_later: int, n_tokens: int) -> None:
    """The event loop waits meanwhile. It was tried with all growths and numbers: 112 cuts."""
    n_asked = 0

    class Counted(StepCost):
        def tokens_within(self, seconds: float, position: int) -> int:
            nonlocal n_asked
            n_asked += 1
            return super().tokens_within(seconds, position)

    first = Counted(base=COST.base, per_token=COST.per_token, per_pair=COST.per_pair)
    stages = [first, *(COST.of_blocks(2 + index) for index in range(n_later))]
    pieces = soonest_pieces(stages, range(n_tokens), bounds=BOUNDS)
    assert pieces[-1].stop == n_tokens
    assert n_asked < 1500


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("factor", [0.3, 1.0, 4.0], ids=["cheap steps", "steps", "dear steps"])
def test_what_is_learned_from_prompts_cuts_them_nearly_as_well_as_the_truth(factor: float, seed: int) -> None:
    cost = StepCost(base=COST.base * factor, per_token=COST.per_token, per_pair=COST.per_pair)
    known = learned(cost, cost.base * 1.3, even_pieces(1024, 8), seed).fitted()
    assert known is not None
    pieces = soonest_pieces([known] * 2, range(1024), bounds=BOUNDS)
    best = soonest_pieces([cost] * 2, range(1024), bounds=BOUNDS)
    assert done_s([cost] * 2, pieces) <= 1.05 * done_s([cost] * 2, best)


def test_pieces_that_take_equally_long_do_not_teach_that_length_costs_nothing() -> None:
    costs = learned(COST, COST.base, soonest_pieces([COST] * 2, range(1024), bounds=BOUNDS), seed=1)
    known = costs.fitted()
    assert known is not None
    assert known.base == COST.base
    assert known.per_token == pytest.approx(COST.per_token, rel=0.3)


@pytest.mark.parametrize("lengths", [(20,), (20, 20, 31), (24, 32, 128)])
def test_short_prompts_teach_nothing_of_attention(lengths: tuple[int, ...]) -> None:
    costs = PromptCosts()
    for n_tokens in lengths:
        costs = costs.with_step(RunStep(n_tokens, 0, COST.seconds(n_tokens, 0)))
    known = costs.fitted()
    assert known is not None
    assert known.per_pair == 0
    assert not costs.is_of_long_prompts
    assert costs.with_step(RunStep(128, 128, COST.seconds(128, 128))).is_of_long_prompts


def test_before_a_prompt_nothing_is_known() -> None:
    assert PromptCosts().fitted() is None
    assert PromptCosts(0.01).with_step(RunStep(1, 700, 0.03)).fitted() is None


def test_steps_that_get_faster_with_their_position_are_taken_to_cost_by_length_alone() -> None:
    costs = PromptCosts(0.0)
    for position, seconds in ((0, 0.2), (128, 0.15), (256, 0.1)):
        costs = costs.with_step(RunStep(128, position, seconds))
    known = costs.fitted()
    assert known is not None
    assert known.per_pair == 0.0
    assert known.per_token > 0.0


SHARES = st.floats(0.05, 20.0)


@given(
    positions=st.tuples(st.integers(0, 2000), st.integers(1, 2500)).map(lambda p: range(p[0], sum(p))),
    later=st.lists(st.builds(StepCost, base=SHARES, per_token=SHARES, per_pair=SHARES), min_size=1, max_size=4),
)
def test_for_unlike_stages_no_cut_for_like_ones_is_sooner_nor_one_piece(
    positions: range, later: list[StepCost]
) -> None:
    stages = [COST] + [
        StepCost(
            base=COST.base * share.base,
            per_token=COST.per_token * share.per_token,
            per_pair=COST.per_pair * share.per_pair,
        )
        for share in later
    ]
    chosen = done_s(stages, soonest_pieces(stages, positions, bounds=BOUNDS))
    alike = soonest_pieces([COST] * len(stages), positions, bounds=BOUNDS)
    assert chosen <= done_s(stages, alike)
    is_in_time = COST.seconds(len(positions), positions.start) <= BOUNDS.longest_s
    if len(positions) <= BOUNDS.short_tokens or (len(positions) <= BOUNDS.most_tokens and is_in_time):
        assert chosen <= done_s(stages, [positions]) * (1 + 1e-9)


@pytest.mark.parametrize(("share", "gain"), [(0.57, 0.05), (0.77, 0.04), (1.3, 0.05), (2.0, 0.06)])
def test_pieces_for_unlike_stages_fall_behind_slower_ones_and_rise_before_them(share: float, gain: float) -> None:
    stages = [
        COST,
        StepCost(base=COST.base * share, per_token=COST.per_token * share, per_pair=COST.per_pair * share),
    ]
    pieces = soonest_pieces(stages, range(1024), bounds=BOUNDS)
    alike = soonest_pieces([COST] * 2, range(1024), bounds=BOUNDS)
    assert done_s(stages, pieces) <= (1 - gain) * done_s(stages, alike)
    times = [COST.seconds(len(piece), piece.start) for piece in pieces[:-1]]
    assert (times[-1] < times[0]) == (share < 1)


def test_a_prompt_is_done_when_the_last_stage_has_done_the_last_piece() -> None:
    one, two = StepCost(base=0.0, per_token=1.0), StepCost(base=1.0, per_token=2.0)
    # 0 to 2 and 2 to 5 at the first; 2 to 7 and 7 to 14 at the other
    assert done_s([one, two], [range(2), range(2, 5)]) == 14.0
    assert done_s([two, one], [range(2), range(2, 5)]) == 15.0
    assert done_s([one, two], []) == 0.0
