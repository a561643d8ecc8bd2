from __future__ import annotations

from random import Random

import pytest

from benchmarks.audit_simulation import AUDITS, MOST_AUDITS, Case, audits_until_quarantine
from coordinator.policy.audit_probe import N_POSITIONS, N_SUMS
from coordinator.policy.audit_repeats import OWN_REPEAT
from coordinator.policy.audit_rules import Held

HELD = Held(weights="float32")


def one_case() -> Case:
    rng = Random(2)
    right = tuple(tuple(rng.gauss(0.0, 1.0) for _ in range(N_SUMS)) for _ in range(N_POSITIONS))
    return Case([(right, right)], HELD, HELD, is_dense=True)


@pytest.mark.parametrize("beside", AUDITS)
def test_who_is_always_wrong_is_quarantined_by_the_first_audit_and_who_is_right_passes(beside: str) -> None:
    assert audits_until_quarantine(one_case(), 1.0, Random(3), AUDITS[beside]) == 1
    ruling = AUDITS[beside](one_case(), 0.0, Random(3))
    assert (ruling.target, ruling.partner) == ("passed", "passed")


@pytest.mark.parametrize("beside", AUDITS)
def test_who_is_wrong_on_a_tenth_of_the_steps_is_quarantined_in_time(beside: str) -> None:
    case, rng = one_case(), Random(3)
    needed = [audits_until_quarantine(case, 0.1, rng, AUDITS[beside]) for _ in range(40)]
    assert sum(n <= MOST_AUDITS for n in needed) >= 39


def test_of_two_alone_the_failure_is_shown_by_its_own_answers() -> None:
    ruling = AUDITS["a single other one"](one_case(), 1.0, Random(3))
    assert (ruling.target, ruling.partner, ruling.referee) == ("failed", "undecided", OWN_REPEAT)
