from __future__ import annotations

import pytest

from protocol.ids import BlockRange, Revision, WorkerId
from protocol.prompt_cost import PromptCost
from worker.batch_bounds import batch_bounds
from worker.batch_costs import BatchCosts
from worker.cutting import UNMEASURED_TOKENS, PromptCutter, Route
from worker.fairness import Tenant
from worker.measures import Measures
from worker.prompt_costs import PromptCosts, RunStep, StepCost
from worker.steps import SpanKey

SPAN = SpanKey(revision=Revision("a" * 64), blocks=BlockRange(0, 4), precision="float32")
COST = StepCost(base=0.008, per_token=0.75e-3, per_pair=0.55e-6)
"""Of the four blocks."""


def route(n_hops: int = 2) -> Route:
    return Route(SPAN, 4, WorkerId("w-next"), WorkerId("w-tail"), n_hops - 1)


def said(share: float, cost: StepCost = COST) -> PromptCost:
    """By a later hop that takes so much of the time of a first one."""
    return PromptCost(share * cost.base, share * cost.per_token, share * cost.per_pair)


def measured(cost: StepCost) -> Measures:
    """After a prompt of 1,024 tokens; `cost`: of the four blocks."""
    costs = PromptCosts(cost.base / 4)
    for position in range(0, 1024, 128):
        costs = costs.with_step(RunStep(128, position, cost.seconds(128, position) / 4))
    return Measures(prompt_costs={SPAN: costs})


def lengths(cutter: PromptCutter, n_tokens: int = 1024, *, n_hops: int = 2, n_others: int = 0) -> list[int]:
    pieces = cutter.pieces(range(n_tokens), route(n_hops), n_others=n_others)
    return [len(piece) for piece in pieces]


def test_before_anything_is_measured_pieces_are_even() -> None:
    assert lengths(PromptCutter(Measures())) == [UNMEASURED_TOKENS] * 8


def test_an_operators_choice_counts_whatever_was_measured() -> None:
    measures = measured(COST)
    assert lengths(PromptCutter(measures, 256)) == [256] * 4


def test_pieces_get_shorter_as_attention_takes_longer() -> None:
    cut = lengths(PromptCutter(measured(COST)))
    assert cut == sorted(cut, reverse=True)
    assert cut[0] > 1.3 * cut[-2]


def test_more_workers_take_more_pieces_and_one_takes_few() -> None:
    cutter = PromptCutter(measured(COST))
    assert len(lengths(cutter, n_hops=1)) < len(lengths(cutter, n_hops=2)) < len(lengths(cutter, n_hops=4))


def test_who_waits_for_tokens_never_waits_for_a_long_piece() -> None:
    cutter = PromptCutter(measured(StepCost(base=0.1, per_token=1e-5)))
    assert max(lengths(cutter)) > UNMEASURED_TOKENS
    assert max(lengths(cutter, n_others=1)) <= UNMEASURED_TOKENS


def test_who_comes_while_a_prompt_runs_does_not_wait_for_its_long_pieces_to_the_end() -> None:
    others = [0, 0, 2, 1, 0]
    pieces = [range(i, i + 300) for i in range(0, 1500, 300)]
    run = [len(piece) for piece in PromptCutter(Measures()).as_others_come(pieces, lambda: others.pop(0))]
    assert run == [300, 300, *[100] * 6, 300]
    chosen = PromptCutter(Measures(), 300).as_others_come(pieces, lambda: 1)
    assert list(chosen) == pieces


def test_a_prompt_is_cut_shorter_while_another_keys_stream_runs_and_no_piece_for_ones_own() -> None:
    many, one = Tenant("many"), Tenant("one")
    costs = BatchCosts().with_batch(1, 1.0).with_batch(48, 3.0).with_batch(128, 5.0)
    cutter = PromptCutter(Measures(bounds=lambda: batch_bounds({one: 1}, 2.0, costs)))
    run = cutter.as_others_come([range(128), range(128, 168)], lambda: 1, many)
    assert [len(piece) for piece in run] == [42, 43, 43, 40]
    assert [len(piece) for piece in cutter.as_others_come([range(128)], lambda: 1, one)] == [128]


def test_what_a_client_has_cut_is_not_cut_further() -> None:
    cutter = PromptCutter(measured(COST))
    assert len(lengths(cutter, UNMEASURED_TOKENS)) > 1
    assert cutter.even_pieces(range(7, 7 + UNMEASURED_TOKENS)) == [range(7, 7 + UNMEASURED_TOKENS)]
    assert PromptCutter(Measures(), 64).even_pieces(range(128)) == [range(64), range(64, 128)]


def test_a_prompt_is_cut_alike_until_another_cut_is_worth_it() -> None:
    measures = measured(COST)
    cutter = PromptCutter(measures)
    first = lengths(cutter)
    measures.prompt_costs[SPAN] = measured(StepCost(base=0.0085, per_token=0.7e-3, per_pair=0.6e-6)).prompt_costs[
        SPAN
    ]
    assert lengths(cutter) == first
    measures.prompt_costs[SPAN] = measured(StepCost(base=0.2, per_token=0.7e-3, per_pair=0.6e-6)).prompt_costs[SPAN]
    assert len(lengths(cutter)) < len(first)


def test_behind_quicker_hops_the_last_pieces_are_short_and_before_slower_ones_the_first() -> None:
    cutter = PromptCutter(measured(COST))
    cutter.heard(route(), (said(0.7),))
    falling = lengths(cutter)
    cutter = PromptCutter(measured(COST))
    cutter.heard(route(), (said(1.4),))
    rising = lengths(cutter)
    assert falling[-1] < falling[0] / 3
    assert rising[0] < max(rising) / 2


def test_hops_of_which_nothing_is_known_are_taken_to_be_alike() -> None:
    cutter = PromptCutter(measured(COST))
    alike = lengths(cutter, n_hops=3)
    assert cutter.heard(route(3), ()) == ()
    assert cutter.heard(route(3), (said(0.5),)) == ()
    assert lengths(cutter, n_hops=3) == alike
    cutter.heard(route(3), (said(0.5), said(0.5)))
    assert lengths(cutter, n_hops=3) != alike


def test_what_later_hops_said_counts_for_their_route_until_they_say_something_else_worth_another_cut() -> None:
    cutter = PromptCutter(measured(COST))
    cutter.heard(route(), (said(0.7),))
    first = lengths(cutter)
    assert len(lengths(cutter, n_hops=3)) > len(first)
    for later in ((said(0.72),), ()):
        cutter.heard(route(), later)
        assert lengths(cutter) == first
    cutter.heard(route(), (said(3.0),))
    assert lengths(cutter) != first


def test_a_hop_tells_the_one_before_what_it_and_the_later_ones_take() -> None:
    told = PromptCutter(measured(COST)).heard(route(), (said(0.5),))
    assert told[1:] == (said(0.5),)
    assert told[0].per_token == pytest.approx(COST.per_token, rel=0.01)
    assert PromptCutter(Measures()).heard(route(), (said(0.5),)) == ()


def test_after_short_prompts_alone_a_hop_tells_nothing_so_the_next_long_one_is_cut_as_for_like_hops() -> None:
    costs = PromptCosts().with_step(RunStep(20, 0, COST.seconds(20, 0) / 4))
    told = PromptCutter(Measures(prompt_costs={SPAN: costs})).heard(route(1), ())
    assert told == ()
    cutter = PromptCutter(measured(COST))
    before = lengths(cutter)
    cutter.heard(route(), told)
    assert lengths(cutter) == before


def test_only_the_latest_routes_are_remembered() -> None:
    cutter = PromptCutter(measured(COST))
    alike = lengths(cutter)
    cutter.heard(route(), (said(0.5),))
    assert lengths(cutter) != alike
    for index in range(256):
        other = Route(SPAN, 4, WorkerId(f"w-{index}"), WorkerId("w-tail"), 1)
        cutter.heard(other, (said(0.5),))
        cutter.pieces(range(32), other, n_others=0)
    assert lengths(cutter) == alike
