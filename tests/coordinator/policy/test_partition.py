from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations, product

import pytest

from coordinator.policy.partition import best_of_all
from coordinator.policy.pipelines import Objective, Task, rank, rank_of
from coordinator.policy.ring_order import ring_s
from tests.coordinator.policy.random_fleets import random_task

Point = tuple[float, float]
"""Of one pipeline: seconds for a token, seconds of the slowest stage."""


def every_pipeline(task: Task, members: tuple[int, ...]) -> Iterator[Point]:
    """Of exactly these members, every order and all shares."""
    for order in permutations(members):
        caps = [task.candidates[m].cap(is_first=i == 0, is_last=i == len(order) - 1) for i, m in enumerate(order)]
        for shares in product(*(range(1, cap + 1) for cap in caps)):
            if sum(shares) == task.n_blocks:
                times = [n * task.candidates[m].seconds_per_block for n, m in zip(shares, order, strict=True)]
                times[-1] += task.candidates[order[-1]].after_s
                yield sum(times) + ring_s(task.links, order), max(times)


def every_partition(members: tuple[int, ...]) -> Iterator[list[tuple[int, ...]]]:
    """Into groups, some members left out."""
    if not members:
        yield []
        return
    first, *rest = members
    for groups in every_partition(tuple(rest)):
        yield groups
        yield [(first,), *groups]
        for i, group in enumerate(groups):
            yield [*groups[:i], (first, *group), *groups[i + 1 :]]


def brute_force(task: Task) -> float | None:
    """The first of the best rank there is; None if the model can't be held."""
    points = {}
    ranks = []
    for groups in every_partition(tuple(range(len(task.candidates)))):
        for group in groups:
            if group not in points:
                points[group] = list(every_pipeline(task, group))
        if groups and all(points[group] for group in groups):
            for choice in product(*(pareto(points[group]) for group in groups)):
                tokens_per_s = sum(1 / slowest_s for _, slowest_s in choice)
                ranks.append(rank(task.objective, min(step_s for step_s, _ in choice), tokens_per_s)[0])
    return min(ranks, default=None)


def pareto(points: list[Point]) -> list[Point]:
    return [p for p in set(points) if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points)]


@pytest.mark.parametrize("objective", ["balance", "one-stream", "many-streams"])
@pytest.mark.parametrize("seed", range(12))
def test_up_to_six_workers_nothing_is_better(seed: int, objective: Objective) -> None:
    task = random_task(seed, n_workers=1 + seed % 4, n_blocks=3 + seed % 4, objective=objective)

    best = brute_force(task)
    found = best_of_all(task)
    assert bool(found) == (best is not None)
    if best is not None:
        assert rank_of(objective, found)[0] == pytest.approx(best)
        members = [member for pipeline in found for member in pipeline.members]
        assert len(set(members)) == len(members), "nobody is in two pipelines"


def test_six_workers_too() -> None:
    task = random_task(100, n_workers=6, n_blocks=6)

    assert rank_of("balance", best_of_all(task))[0] == pytest.approx(brute_force(task))
