"""The pipelines to have if nothing were placed yet: which workers, how many blocks each, in which order.

Small fleets are looked at completely. For larger ones workers are put in a line in several ways, the best runs of
each are found (`partition`), and what is found is improved: stages in the order of the shortest ring, workers left
out whose hop costs more than it gives, workers taken in that help.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from coordinator.policy.partition import EXACT_WORKERS, best_of_all, best_of_line
from coordinator.policy.pipelines import Pipeline, Task, pipelines_of, rank_of, turned_to_fit
from coordinator.policy.ring_order import shortest_ring

MAX_WORKERS = 200
"""Workers that are planned with; of more, the fastest and the roomiest."""

MAX_CHANGES = 160
"""Workers left out or taken in, one after the other, times the stages of the longest pipeline."""

_SEEDS = 3
"""Of the fastest workers, those that a pipeline is built around."""
_IMPROVED = 2
"""Of what was found, so many are improved: the best."""
_TRIED_PIPELINES = 4
"""A worker that is left over is tried in the quickest and the slowest pipelines, half of these each."""
_TRIED_CHANGES = 32
"""Of a pipeline with those that are left over, the fastest of them."""


def best_pipelines(task: Task) -> list[Pipeline]:
    """The best that were found; none if all workers together can't hold the model."""
    usable = [i for i, candidate in enumerate(task.candidates) if candidate.cap() > 0]
    if len(task.candidates) <= EXACT_WORKERS:
        return best_of_all(task)
    found = [pipelines for line in _lines(task, usable) if (pipelines := best_of_line(task, line))]
    if not found:
        return []
    found.sort(key=lambda pipelines: rank_of(task.objective, pipelines))
    reordered = [[_reordered(task, pipeline) for pipeline in pipelines] for pipelines in found[:_IMPROVED]]
    improved = [_improved(task, usable, pipelines) for pipelines in reordered]
    return min(improved, key=lambda pipelines: rank_of(task.objective, pipelines))


def _lines(task: Task, usable: Sequence[int]) -> Iterator[list[int]]:
    """By speed, by room, by both; if nearness is known, by that too, and by what each would add around one."""
    of = task.candidates

    def cap(i: int) -> int:
        return min(task.n_blocks, of[i].cap())

    yield sorted(usable, key=lambda i: (of[i].seconds_per_block, -cap(i)))
    yield sorted(usable, key=lambda i: (-cap(i), of[i].seconds_per_block))
    yield sorted(usable, key=lambda i: (of[i].seconds_per_block / cap(i), i))
    if len({task.links[a][b] for a in usable[:20] for b in usable if a != b}) > 1:
        yield list(shortest_ring(task.links, usable))
        for seed in sorted(usable, key=lambda i: of[i].seconds_per_block)[:_SEEDS]:
            hops_s = {i: task.links[seed][i] + task.links[i][seed] for i in usable}
            yield sorted(usable, key=lambda i: (i != seed, of[i].seconds_per_block + hops_s[i] / cap(i)))


def _reordered(task: Task, pipeline: Pipeline) -> Pipeline:
    """The same workers, the stages in the order of the shortest ring if that fits and is better."""
    if len(pipeline.members) < 2:
        return pipeline
    order = turned_to_fit(task, shortest_ring(task.links, pipeline.members))
    if order is None:
        return pipeline
    return min((pipeline, *pipelines_of(task, order)), key=lambda p: (p.slowest_s, p.step_s))


def _improved(task: Task, usable: Sequence[int], pipelines: list[Pipeline]) -> list[Pipeline]:
    """Change after change, each the best of those that are looked at, as long as it helps."""
    best_rank = rank_of(task.objective, pipelines)
    for _ in range(1 + MAX_CHANGES // max(len(pipeline.members) for pipeline in pipelines)):
        spare = sorted(
            set(usable).difference(*(p.members for p in pipelines)),
            key=lambda i: (task.candidates[i].seconds_per_block, i),
        )
        changed = [(rank_of(task.objective, after), after) for after in _changes(task, spare, pipelines) if after]
        if not changed:
            break
        found_rank, found = min(changed, key=lambda change: change[0])
        if not found_rank < best_rank:
            break
        best_rank, pipelines = found_rank, found
    return pipelines


def _changes(task: Task, spare: Sequence[int], pipelines: list[Pipeline]) -> Iterator[list[Pipeline]]:
    by_step = sorted(range(len(pipelines)), key=lambda i: pipelines[i].step_s)
    tried = dict.fromkeys((*by_step[: _TRIED_PIPELINES // 2], *by_step[-_TRIED_PIPELINES // 2 :]))
    for i in tried:
        others = [*pipelines[:i], *pipelines[i + 1 :]]
        members = pipelines[i].members
        yield others
        for shape in _shapes(task, members, spare[: 1 + _TRIED_CHANGES // len(members)]):
            for pipeline in pipelines_of(task, shape):
                yield [*others, pipeline]


def _shapes(task: Task, members: tuple[int, ...], spare: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """The same workers, one less, one more where it lengthens the ring least, or one in another's place."""
    yield members
    for i in range(len(members)):
        if len(members) > 1:
            yield members[:i] + members[i + 1 :]
        for worker in spare:
            yield (*members[:i], worker, *members[i + 1 :])
    if len(members) < task.n_blocks:
        for worker in spare:
            yield one_more(task, members, worker)


def one_more(task: Task, members: tuple[int, ...], worker: int) -> tuple[int, ...]:
    """The members with this worker where it lengthens the ring least."""
    links, n = task.links, len(members)

    def longer_s(i: int) -> float:
        before, after = members[i - 1], members[i % n]
        return links[before][worker] + links[worker][after] - links[before][after]

    place = min(range(1, n + 1), key=longer_s)
    return (*members[:place], worker, *members[place:])
