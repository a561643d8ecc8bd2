from __future__ import annotations

import statistics

import pytest

from coordinator.policy import planning
from coordinator.policy.pipelines import Objective, rank_of
from coordinator.policy.planning import best_pipelines
from tests.coordinator.policy.random_fleets import candidate, random_task, task_of

OBJECTIVES: tuple[Objective, ...] = ("balance", "one-stream", "many-streams")


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_what_large_fleets_are_planned_by_is_close_to_the_best_on_small_ones(
    objective: Objective, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = [random_task(seed, 2 + seed % 5, 12, objective) for seed in range(40)]
    exact = [best_pipelines(task) for task in tasks]
    monkeypatch.setattr(planning, "EXACT_WORKERS", 0)
    ratios = [
        rank_of(objective, found)[0] / rank_of(objective, best)[0]
        for task, best in zip(tasks, exact, strict=True)
        if best and (found := best_pipelines(task))
    ]

    assert min(ratios) > 1 - 1e-9, "better than the best"
    assert statistics.mean(ratios) < 1.05
    assert max(ratios) < 1.6
    assert len(ratios) > 0.9 * sum(map(bool, exact)), "a model that can be held is held, but for narrow ends"


def test_who_can_hold_it_all_does_so_alone() -> None:
    task = task_of([candidate("fast", 1.0, 8), candidate("slow", 2.0, 8)], n_blocks=8, link_s=0.1)

    assert [pipeline.members for pipeline in best_pipelines(task)] == [(0,), (1,)]


@pytest.mark.parametrize("n_more", [0, 5])
def test_a_worker_whose_hop_costs_more_than_it_gives_is_left_out(n_more: int) -> None:
    near = [candidate("a", 1.0, 6), candidate("b", 1.0, 6), *(candidate(f"n{i}", 1.0, 1) for i in range(n_more))]
    task = task_of([*near, candidate("far", 1.0, 6)], n_blocks=12, link_s=0.01)
    for i in range(len(near)):
        task.links[i][-1] = task.links[-1][i] = 1000.0  # type: ignore[index]

    assert all(len(near) not in pipeline.members for pipeline in best_pipelines(task))


def test_shares_of_unequal_workers_take_equally_long_for_many_streams() -> None:
    task = task_of([candidate("a", 1.0, 9), candidate("b", 2.0, 9)], n_blocks=12, objective="many-streams")
    (pipeline,) = best_pipelines(task)
    assert dict(zip(pipeline.members, pipeline.shares.given, strict=True)) == {0: 8, 1: 4}

    quick = task_of([candidate("a", 1.0, 9), candidate("b", 2.0, 9)], n_blocks=12, objective="one-stream")
    (pipeline,) = best_pipelines(quick)
    assert dict(zip(pipeline.members, pipeline.shares.given, strict=True)) == {0: 9, 1: 3}
