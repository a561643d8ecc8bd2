from __future__ import annotations

import random

import pytest

from benchmarks.placement import METRICS, compared, equal_split, ours, petals, random_fleet, speed
from coordinator.policy.pipelines import Objective


@pytest.mark.parametrize(
    ("objective", "metric"),
    [("balance", "both alike"), ("one-stream", "one stream"), ("many-streams", "many streams")],
)
def test_no_fleet_is_placed_worse_than_by_simpler_rules(objective: Objective, metric: str) -> None:
    for seed in range(12):
        rng = random.Random(seed)
        task = random_fleet(rng, 2 + seed, 12, objective=objective)
        mine = speed(task, ours(task))
        assert mine is not None
        for rule in (petals, equal_split):
            theirs = speed(task, rule(task))
            if theirs is not None:
                assert METRICS[metric](mine) > METRICS[metric](theirs) * (1 - 1e-9), (seed, rule)


def test_the_table_has_a_row_for_each_size_and_rule() -> None:
    rows = list(compared(4, 1, "balance"))

    assert len(rows) == 2 + 4 * 2
    assert all(row.count("|") == 8 for row in rows)
