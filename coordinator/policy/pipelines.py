"""Pipelines, and what several of them together are worth: the model that placement is decided by.

A token of one stream takes the blocks' times of all stages and one way round the ring. Of many streams a pipeline
finishes one token in the time of its slowest stage, and several pipelines work side by side. One stream goes
through the quickest of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from coordinator.policy.filling import Stage
from coordinator.policy.gap_filling import Candidate
from coordinator.policy.ring_order import Links, ring_s
from coordinator.policy.shares import Shares, evenest, worthwhile

Objective = Literal["balance", "one-stream", "many-streams"]
"""What to place for. Balance weighs both alike: twice the tokens of many streams are worth twice those of one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is to be placed, and on whom. Workers go by their number in `candidates` from here on."""

    n_blocks: int
    candidates: Sequence[Candidate]
    links: Links
    objective: Objective = "balance"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """Workers in order, with the blocks of each."""

    members: tuple[int, ...]
    shares: Shares
    ring_s: float

    @property
    def step_s(self) -> float:
        """For one token of one stream."""
        return self.shares.sum_s + self.ring_s

    @property
    def slowest_s(self) -> float:
        """Of the slowest stage: seconds between two tokens of many streams."""
        return self.shares.slowest_s


Rank = tuple[float, float]
"""Less is better."""


def rank(objective: Objective, step_s: float, tokens_per_s: float) -> Rank:
    """Of pipelines of which the quickest takes `step_s` and which make `tokens_per_s` together for many streams."""
    match objective:
        case "one-stream":
            return step_s, 1 / tokens_per_s
        case "many-streams":
            return 1 / tokens_per_s, step_s
        case "balance":
            return step_s / tokens_per_s, step_s


def rank_of(objective: Objective, pipelines: Sequence[Pipeline]) -> Rank:
    """Of these pipelines, of which there is one at least."""
    return rank(objective, min(p.step_s for p in pipelines), sum(1 / p.slowest_s for p in pipelines))


def stages_of(task: Task, members: Sequence[int]) -> list[Stage]:
    """The members as stages in this order, the first and the last with room for the model's ends.

    The last also takes the time of what comes after the blocks.
    """
    last = len(members) - 1
    return [
        Stage(
            seconds_per_block=task.candidates[member].seconds_per_block,
            cap=task.candidates[member].cap(is_first=i == 0, is_last=i == last),
            fixed_s=task.candidates[member].after_s if i == last else 0.0,
        )
        for i, member in enumerate(members)
    ]


def pipelines_of(task: Task, members: Sequence[int]) -> Iterator[Pipeline]:
    """Pipelines of these members in this order that may be worth it, the evenest first."""
    length_s = ring_s(task.links, members)
    for shares in worthwhile(task.n_blocks, stages_of(task, members)):
        yield Pipeline(members=tuple(members), shares=shares, ring_s=length_s)


def evenest_pipeline(task: Task, members: Sequence[int]) -> Pipeline | None:
    """The one for many streams; None if the members can't hold the model in this order."""
    shares = evenest(task.n_blocks, stages_of(task, members))
    if shares is None:
        return None
    return Pipeline(members=tuple(members), shares=shares, ring_s=ring_s(task.links, members))


def turned_to_fit(task: Task, ring: Sequence[int]) -> tuple[int, ...] | None:
    """The ring from where its ends have room for the model's, and the slowest stage is fastest; None if nowhere.

    Where links take as long in both directions, as round trips have it, either direction is as good.
    """
    best_s, best = math.inf, None
    for order in (tuple(ring), tuple(reversed(ring))):
        for i in range(len(order)):
            turned = order[i:] + order[:i]
            shares = evenest(task.n_blocks, stages_of(task, turned))
            if shares is not None and shares.slowest_s < best_s * (1 - 1e-9):
                best_s, best = shares.slowest_s, turned
    return best
