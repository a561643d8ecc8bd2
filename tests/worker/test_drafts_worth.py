from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.drafts_worth import (
    MIN_GAIN,
    Acceptance,
    DraftShares,
    ModelTimes,
    ModelWorth,
    RoundTimes,
    best_n_drafts,
    best_n_model_drafts,
)


def times(base_s: float, draft_s: float) -> RoundTimes:
    return RoundTimes(base_s=base_s, draft_s=draft_s)


def after(outcomes: list[tuple[int, bool]]) -> Acceptance:
    acceptance = Acceptance()
    for n_matched, has_held in outcomes:
        acceptance.add(n_matched, has_held=has_held)
    return acceptance


OUTCOMES = st.lists(st.tuples(st.integers(1, 20), st.booleans()), max_size=60)


@given(
    OUTCOMES,
    st.integers(1, 20),
    st.integers(0, 16),
    st.floats(1e-3, 1.0),
    st.floats(0.0, 1.0),
    st.integers(0, 9),
)
def test_no_other_number_promises_more(
    outcomes: list[tuple[int, bool]], n_matched: int, n_allowed: int, base_s: float, share: float, n_others: int
) -> None:
    acceptance, measured = after(outcomes), times(base_s, share * base_s)

    def promised(n_drafts: int) -> float:
        chance, n_expected = 1.0, 1.0
        for index in range(n_drafts):
            chance *= acceptance.rate(n_matched + index)
            n_expected += chance
        gain = n_expected / MIN_GAIN if n_drafts else 1.0
        return (n_others + gain) / measured.seconds(n_drafts)

    best = best_n_drafts(n_matched, n_allowed, acceptance, measured, n_others=n_others).n_drafts
    assert 0 <= best <= n_allowed
    assert promised(best) == pytest.approx(max(promised(k) for k in range(n_allowed + 1)))
    dearer = times(base_s, 2 * share * base_s)
    assert best_n_drafts(n_matched, n_allowed, acceptance, dearer, n_others=n_others).n_drafts <= best
    with_one_more = best_n_drafts(n_matched, n_allowed, acceptance, measured, n_others=n_others + 1)
    assert with_one_more.n_drafts <= best


def test_nothing_is_guessed_before_a_round_was_measured() -> None:
    assert best_n_drafts(16, 16, Acceptance(), RoundTimes(), n_others=0).n_drafts == 0


@given(OUTCOMES, st.integers(1, 30))
def test_rates_are_shares_that_follow_what_was_seen(outcomes: list[tuple[int, bool]], n_matched: int) -> None:
    acceptance = after(outcomes)
    before = acceptance.rate(n_matched)
    assert 0.0 <= before <= 1.0
    for _ in range(100):
        acceptance.add(n_matched, has_held=True)
    assert acceptance.rate(n_matched) > 0.9
    for _ in range(100):
        acceptance.add(n_matched, has_held=False)
    assert acceptance.rate(n_matched) < 0.1


@pytest.mark.parametrize("prior_share", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("prior_guessing", [0.0, 0.5])
@pytest.mark.parametrize("guessing", [0.0, 0.5])
@pytest.mark.parametrize(("base_s", "draft_s"), [(0.3, 0.002), (0.05, 0.0135), (0.004, 0.004)])
def test_times_are_learned_whatever_was_believed(
    prior_share: float, prior_guessing: float, base_s: float, guessing: float, draft_s: float
) -> None:
    rng = random.Random(1)
    learned = RoundTimes(DraftShares(guessing=prior_guessing, draft=prior_share))
    right = [base_s * (1 + guessing * bool(n)) + n * draft_s for n in range(9)]
    for index in range(60):
        n_drafts = index % 9
        learned.add(n_drafts, right[n_drafts] * rng.gauss(1.0, 0.1))
        if index == 30:
            learned.add(n_drafts, 100.0)  # held up by something else
    assert learned.base_s == pytest.approx(base_s, rel=0.25)
    assert learned.draft_s == pytest.approx(draft_s, abs=0.06 * base_s, rel=0.2)
    for n_drafts in (1, 4, 8):
        assert learned.seconds(n_drafts) == pytest.approx(right[n_drafts], rel=0.25)


def model(guess_s: float = 0.01, prompt_token_s: float = 0.001) -> ModelWorth:
    return ModelWorth(ModelTimes(guess_s=guess_s, prompt_token_s=prompt_token_s))


def n_asked(worth: ModelWorth, base_s: float, *, n_behind: int = 1, n_left: int = 100) -> int:
    measured = times(base_s, 0.01 * base_s)
    return best_n_model_drafts(16, worth, measured, n_others=0, n_behind=n_behind, n_left=n_left).n_drafts


def test_a_model_is_asked_where_the_links_are_slower_than_it() -> None:
    assert n_asked(model(), base_s=0.3) >= 3
    assert n_asked(model(), base_s=0.01) == 0


def test_a_text_that_has_to_be_read_first_is_worth_it_if_much_is_to_come() -> None:
    assert n_asked(model(), 0.1, n_behind=2000, n_left=10) == 0
    assert n_asked(model(), 0.1, n_behind=2000, n_left=1000) > 0


def test_a_model_that_is_wrong_is_left_alone_for_a_while_and_then_asked_again() -> None:
    worth = model(guess_s=0.05)
    n_wrong = 0
    while n_asked(worth, 0.3):
        worth.add(4, 0)
        n_wrong += 1
    assert n_wrong < 10
    for _ in range(200):
        worth.fade()
    assert n_asked(worth, 0.3)


@given(st.lists(st.tuples(st.integers(1, 16), st.integers(0, 16)), max_size=60))
def test_a_models_rate_is_a_share(rounds: list[tuple[int, int]]) -> None:
    worth = model()
    for n_drafts, n_held in rounds:
        worth.add(n_drafts, min(n_held, n_drafts))
        assert 0.0 < worth.rate <= 1.0
