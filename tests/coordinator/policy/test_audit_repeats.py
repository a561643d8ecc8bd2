from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.policy.audit_repeats import OWN_REPEAT, Confirmation, contradictory
from coordinator.policy.audit_rules import MAX_CONFIRMATIONS, N_AGAIN, Comparison


def repeat(agrees: bool) -> Comparison:
    return Comparison(one="a", other=OWN_REPEAT, difference=0.0 if agrees else 1.0, allowed=0.5)


repeats = st.none() | st.booleans().map(repeat)


@given(repeats)
def test_nobody_is_named_for_what_the_other_answers(other: Comparison | None) -> None:
    assert contradictory([repeat(True), other]) in (None, 1)
    assert contradictory([other, repeat(True)]) in (None, 0)
    assert contradictory([None, other]) in (None, 1)  # nor who gave no answer


@given(repeats)
def test_who_contradicts_itself_is_shielded_by_nobody(other: Comparison | None) -> None:
    assert contradictory([repeat(False), other]) == 0
    assert contradictory([other, repeat(False)]) is not None


@given(st.lists(st.booleans(), max_size=3 * MAX_CONFIRMATIONS))
def test_two_of_so_many_fresh_probes_show_it_and_no_more_are_asked(agree: list[bool]) -> None:
    so_far = Confirmation()
    for agrees in agree:
        if so_far.is_over:
            break
        so_far = so_far.after(repeat(agrees))
    asked = agree[: so_far.n_fresh]
    assert so_far.is_shown == (asked.count(False) >= N_AGAIN) == (agree[:MAX_CONFIRMATIONS].count(False) >= N_AGAIN)
    assert so_far.is_over == (so_far.is_shown or len(asked) == MAX_CONFIRMATIONS)


@pytest.mark.parametrize("n_shown", range(N_AGAIN))
def test_nobody_fails_by_fewer(n_shown: int) -> None:
    assert not Confirmation(n_fresh=MAX_CONFIRMATIONS, n_shown=n_shown).is_shown
