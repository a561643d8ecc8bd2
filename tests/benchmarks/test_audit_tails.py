from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.audit_alarms import PAIRS, Alarms, Cell, Floats
from benchmarks.audit_answers import WHOLE
from benchmarks.audit_tails import (
    at_least,
    chance_of,
    confirmed,
    counted_at_most,
    is_reached,
    table,
    tail_of,
    words,
)
from coordinator.policy.audit_accusations import N_LATER
from coordinator.policy.audit_rules import MAX_CONFIRMATIONS, N_AGAIN

CELL = Cell("llama", 0, WHOLE, 0)


def power_law(exponent: float, n_values: int, *, start: float = 1.0, seed: int = 1) -> Floats:
    return (start * (np.random.default_rng(seed).pareto(exponent, n_values) + 1.0)).astype(np.float32)


def test_the_tail_of_a_power_law_is_reckoned_as_it_is() -> None:
    tail = tail_of(power_law(8.0, 200_000))
    assert tail.chance(4.0) == pytest.approx(4.0**-8, rel=0.5)
    assert tail.chance(tail.level(1e-4)) == pytest.approx(1e-4)
    assert tail.chance(0.5) == 1.0  # nearer than where the tail begins it says nothing


def test_the_bound_holds_for_nineteen_in_twenty() -> None:
    n_below = sum(
        tail_of(power_law(8.0, 3000, seed=seed)).chance(4.0, at_most=True) < 4.0**-8 for seed in range(400)
    )
    assert n_below < 40  # 20 expected, of a normal approximation


def test_none_of_n_and_some_of_n_are_bounded() -> None:
    assert counted_at_most(0, 3000) == pytest.approx(1.0 - 0.05 ** (1 / 3000), rel=1e-4)
    assert counted_at_most(1, 200) == pytest.approx(0.0234987, rel=1e-3)
    assert 1.0 - at_least(5, 200, counted_at_most(4, 200)) == pytest.approx(0.05, rel=1e-3)


def test_a_false_quarantine_needs_three_alarms() -> None:
    found = chance_of(CELL, np.full(3000, 0.5, np.float32))
    comes_again = confirmed(found.alarm_at_most) + at_least(N_AGAIN, N_LATER, found.alarm_at_most)
    assert found.quarantine_at_most == found.alarm_at_most * comes_again
    assert confirmed(1e-5) == pytest.approx(math.comb(MAX_CONFIRMATIONS, N_AGAIN) * 1e-10, rel=1e-3)
    frequent = chance_of(CELL, np.tile([0.5, 0.5, 0.5, 1.5], 1000).astype(np.float32))
    assert frequent.n_alarms == 1000
    assert 0.25 < frequent.alarm_at_most < 0.3


def test_whether_the_goal_is_reached_is_the_worst_cells_matter() -> None:
    near, far = power_law(8.0, 4000, start=0.5), power_law(8.0, 4000, start=0.1)
    alarms = Alarms(ratios={CELL: far, Cell("llama", 1, WHOLE, 1): far}, dense={"llama"}, n_inputs=4000)
    assert is_reached(alarms)
    assert "goal is 1e-05: reached" in words(alarms)
    alarms.ratios[Cell("mixtral", 0, WHOLE, 1)] = near
    assert not is_reached(alarms)
    assert f"cells (mixtral 0, {WHOLE}, {PAIRS[1][0].weights}" in words(alarms)
    assert "NOT reached" in words(alarms)
    assert table(alarms).row_count == 3
