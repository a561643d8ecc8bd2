"""Which workers make how many pipelines: every possibility for a few workers, dynamic programming for many.

For many: workers stand in a line (by speed, by room, by nearness) and pipelines are runs of it, some left out
between. What the best pipelines of all before a place are worth, and of all after it, is found in one pass each;
then each run is tried as the one that single streams go through, with the best on either side of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import permutations

from coordinator.policy.pipelines import (
    Pipeline,
    Rank,
    Task,
    evenest_pipeline,
    pipelines_of,
    rank,
)
from coordinator.policy.ring_order import ring_s

EXACT_WORKERS = 6
"""Up to so many workers every set, order and share is looked at: 1,956 orders."""

_LONGER_RUNS = 3
"""Stages that a run may have beyond as many as it takes to hold the model."""


def best_of_all(task: Task) -> list[Pipeline]:
    """The best pipelines there are, of up to `EXACT_WORKERS`; the one that single streams take first."""
    n = len(task.candidates)
    fronts = [_front(task, members) for members in range(1 << n)]
    rates, firsts = _best_rates(fronts)
    everybody, best_rank, best_choice = (1 << n) - 1, _NEVER, (0, 0)
    for members, front in enumerate(fronts):
        for i, pipeline in enumerate(front):
            tokens_per_s = 1 / pipeline.slowest_s + rates[everybody & ~members]
            found = rank(task.objective, pipeline.step_s, tokens_per_s)
            if found < best_rank:
                best_rank, best_choice = found, (members, i)
    if best_rank == _NEVER:
        return []
    members, i = best_choice
    chosen, rest = [fronts[members][i]], everybody & ~members
    while firsts[rest]:
        chosen.append(fronts[firsts[rest]][0])
        rest &= ~firsts[rest]
    return chosen


_NEVER: Rank = (math.inf, math.inf)


def _front(task: Task, members: int) -> list[Pipeline]:
    """Of one set of workers in any order, pipelines none of which is better in both respects; the evenest first."""
    inside = [i for i in range(len(task.candidates)) if members >> i & 1]
    found = [pipeline for order in _worthwhile_orders(task, inside) for pipeline in pipelines_of(task, order)]
    front: list[Pipeline] = []
    for pipeline in sorted(found, key=lambda p: (p.slowest_s, p.step_s)):
        if not front or pipeline.step_s < front[-1].step_s:
            front.append(pipeline)
    return front


def _worthwhile_orders(task: Task, inside: Sequence[int]) -> list[tuple[int, ...]]:
    """Of orders with the same room and time for everybody (they hang on the ends) the one with the least way."""
    shortest: dict[tuple[int, tuple[int, ...]], tuple[float, tuple[int, ...]]] = {}
    caps = {i: [task.candidates[i].cap(is_first=first, is_last=last) for first, last in _ENDS] for i in inside}
    for order in permutations(inside) if inside else ():
        room = [caps[i][0] for i in inside]
        room[inside.index(order[0])] = caps[order[0]][1]
        room[inside.index(order[-1])] = caps[order[-1]][2 if len(order) > 1 else 3]
        found = ring_s(task.links, order), order
        key = order[-1], tuple(room)
        if key not in shortest or found < shortest[key]:
            shortest[key] = found
    return [order for _, order in shortest.values()]


_ENDS = ((False, False), (True, False), (False, True), (True, True))
"""Whether a stage has the model's first and last block."""


def _best_rates(fronts: Sequence[Sequence[Pipeline]]) -> tuple[list[float], list[int]]:
    """For each set of workers the most tokens a second for many streams, and one pipeline's members (0: none)."""
    rates, firsts = [0.0] * len(fronts), [0] * len(fronts)
    for members in range(1, len(fronts)):
        lowest = members & -members
        # without the lowest, or with it in one of the subsets that it is in
        rates[members], firsts[members] = rates[members & ~lowest], firsts[members & ~lowest]
        part = members
        while part:
            if part & lowest and fronts[part]:
                rate = 1 / fronts[part][0].slowest_s + rates[members & ~part]
                if rate > rates[members] * (1 + 1e-12):
                    rates[members], firsts[members] = rate, part
            part = (part - 1) & members
    return rates, firsts


# ------------------------------------------------------------------ many workers


def best_of_line(task: Task, line: Sequence[int]) -> list[Pipeline]:
    """The best pipelines that are runs of this line; the one that single streams take first."""
    runs = _runs(task, line)
    before, after = _best_before(runs, len(line)), _best_after(runs, len(line))
    best_rank, best_run = _NEVER, None
    for start, end, pipeline in runs:
        others_per_s = before[start][0] + after[end][0]
        found = rank(task.objective, pipeline.step_s, 1 / pipeline.slowest_s + others_per_s)
        if found < best_rank:
            best_rank, best_run = found, (start, end, pipeline)
    if best_run is None:
        return []
    start, end, chosen = best_run
    return [chosen, *before[start][1], *after[end][1]]


_Run = tuple[int, int, Pipeline]
"""Of a line, from which place up to which."""
_Best = tuple[float, tuple[Pipeline, ...]]
"""Tokens a second of many streams, and the pipelines that make them."""


def _runs(task: Task, line: Sequence[int]) -> list[_Run]:
    """Every run that can hold the model, if it isn't much longer than it has to be; the evenest shares of each."""
    caps = [task.candidates[member].cap() for member in line]
    runs: list[_Run] = []
    for start in range(len(line)):
        room, n_longer = 0, 0
        for end in range(start + 1, min(len(line), start + task.n_blocks) + 1):
            room += caps[end - 1]
            if room < task.n_blocks:
                continue
            members = line[start:end]
            turned = _quickest_last(task, members)
            pipeline = evenest_pipeline(task, turned) or evenest_pipeline(task, members)
            if pipeline is not None:
                runs.append((start, end, pipeline))
            n_longer += 1
            if n_longer > _LONGER_RUNS:
                break
    return runs


def _quickest_last(task: Task, members: Sequence[int]) -> Sequence[int]:
    """The same ring, begun behind who takes least time after the last block."""
    behind = 1 + min(range(len(members)), key=lambda i: task.candidates[members[i]].after_s)
    return [*members[behind:], *members[:behind]]


def _best_before(runs: Sequence[_Run], n_places: int) -> list[_Best]:
    """For each place, the best pipelines of the line before it."""
    ending: dict[int, list[_Run]] = {}
    for run in runs:
        ending.setdefault(run[1], []).append(run)
    best: list[_Best] = [(0.0, ())]
    for place in range(1, n_places + 1):
        found = best[-1]
        for start, _, pipeline in ending.get(place, ()):
            tokens_per_s = best[start][0] + 1 / pipeline.slowest_s
            if tokens_per_s > found[0]:
                found = tokens_per_s, (*best[start][1], pipeline)
        best.append(found)
    return best


def _best_after(runs: Sequence[_Run], n_places: int) -> list[_Best]:
    """For each place, the best pipelines of the line from it on."""
    mirrored = [(n_places - end, n_places - start, pipeline) for start, end, pipeline in runs]
    return _best_before(mirrored, n_places)[::-1]
