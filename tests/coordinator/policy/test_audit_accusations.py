from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.policy.audit_accusations import N_LATER, Accusations, compared, is_proved
from coordinator.policy.audit_rules import N_AGAIN
from protocol.ids import WorkerId

A, B = WorkerId("a"), WorkerId("b")


def after(accused: list[bool]) -> Accusations:
    found: Accusations = {B: (0,)}
    for is_accused in accused:
        found = compared(found, A, is_accused=is_accused)
    return found


@pytest.mark.parametrize("n_between", [0, N_LATER // 2 - 1, N_LATER // 2])
def test_three_accusations_among_nine_audits_are_proof(n_between: int) -> None:
    between = [False] * n_between
    accused = [True, *between, True, *between, True]
    assert not is_proved(after(accused[:-1]), A)
    assert is_proved(after(accused), A) == (len(accused) <= 1 + N_LATER)


@given(st.lists(st.booleans(), max_size=60))
def test_only_the_newest_audits_count_and_each_worker_s_own(accused: list[bool]) -> None:
    found = after(accused)
    assert is_proved(found, A) == (sum(accused[-1 - N_LATER :]) > N_AGAIN)
    assert found[B] == (0,)
    assert (A in found) == any(accused[-1 - N_LATER :])  # nothing is kept of who wasn't accused
