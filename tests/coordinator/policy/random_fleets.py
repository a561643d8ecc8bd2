"""Fleets for the tests of planning: few blocks, a decade of speeds, two sites."""

from __future__ import annotations

import random

from coordinator.policy.gap_filling import Candidate
from coordinator.policy.pipelines import Objective, Task
from protocol.ids import WorkerId


def candidate(name: str, seconds_per_block: float, cap: int, *, end: int = 0, after_s: float = 0.0) -> Candidate:
    """Room for `cap` blocks, of which an end of the model takes `end` tenths of one."""
    return Candidate(
        worker_id=WorkerId(name),
        seconds_per_block=seconds_per_block,
        room_bytes=10 * cap,
        block_bytes=10,
        before_bytes=end,
        after_bytes=end,
        both_bytes=2 * end,
        after_s=after_s,
    )


def task_of(
    candidates: list[Candidate], n_blocks: int, link_s: float = 0.0, objective: Objective = "balance"
) -> Task:
    """All links alike."""
    n = len(candidates)
    links = [[0.0 if a == b else link_s for b in range(n)] for a in range(n)]
    return Task(n_blocks=n_blocks, candidates=candidates, links=links, objective=objective)


def random_task(seed: int, n_workers: int, n_blocks: int, objective: Objective = "balance") -> Task:
    rng = random.Random(seed)
    sites = [rng.randrange(2) for _ in range(n_workers)]
    links = [[0.0] * n_workers for _ in range(n_workers)]
    for a in range(n_workers):
        for b in range(a):
            links[a][b] = links[b][a] = rng.uniform(0.1, 0.5) if sites[a] == sites[b] else rng.uniform(2.0, 9.0)
    head_in_blocks = rng.choice((0.0, 0.4, 2.5))
    candidates = []
    for i in range(n_workers):
        block_s, cap, end = 10 ** rng.uniform(-0.5, 0.5), rng.randint(1, n_blocks), rng.randrange(12)
        candidates.append(candidate(f"w{i:03}", block_s, cap, end=end, after_s=head_in_blocks * block_s))
    return Task(n_blocks=n_blocks, candidates=candidates, links=links, objective=objective)
