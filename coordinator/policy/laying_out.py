"""Ranges for a model of which nobody holds anything: planned, then turned so that files on disk are of most use.

Layouts are weighed by the same model (`modelled`): planned pipelines, with whoever is left over where the least
throughput is; the same as if nobody had the model's end to run; and everybody where the least throughput is. A plan
knows nothing of ways from one pipeline into another, so one made for something else may be the better one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from coordinator.policy.gap_filling import Candidate
from coordinator.policy.least_served import Ranges, least_served
from coordinator.policy.links import LINK_S, links_among
from coordinator.policy.modelled import MAX_GIVEN_UP, speed_of
from coordinator.policy.pipelines import Objective, Pipeline, Rank, Task, pipelines_of, rank
from coordinator.policy.planning import MAX_WORKERS, best_pipelines
from coordinator.policy.ring_order import ring_s
from coordinator.policy.segments import Segment
from coordinator.policy.state import ClusterState, ModelRecord
from protocol.ids import BlockRange, WorkerId

_MANY = 32
"""Workers beyond which one plan is made: it takes about a second for 200."""


def laid_out(
    state: ClusterState,
    model: ModelRecord,
    candidates: Sequence[Candidate],
    objective: Objective,
    *,
    is_sparing: bool,
) -> dict[WorkerId, BlockRange]:
    """Ranges by worker; none if together they can't hold the model.

    `is_sparing`: the pipeline for single streams alone, as long as other models want room as well.
    """
    on_disk = {c.worker_id: _bytes_on_disk(state, model, c.worker_id) for c in candidates}
    chosen = sorted(
        _quick(candidates, model.manifest.n_blocks), key=lambda c: (-sum(on_disk[c.worker_id]), c.worker_id)
    )
    links = links_among([state.workers[c.worker_id] for c in chosen])
    task = Task(n_blocks=model.manifest.n_blocks, candidates=chosen, links=links, objective=objective)
    kept = [on_disk[c.worker_id] for c in chosen]
    pipelines = _planned(task, kept)
    if not pipelines:
        return {}
    ranges = pipelines[0] if is_sparing else _best_ranges(task, [pipelines, *_without_end(task, kept)])
    return {chosen[i].worker_id: blocks for i, blocks in ranges.items()}


def _planned(task: Task, on_disk: Sequence[Sequence[int]]) -> list[Ranges]:
    return [_turned(task, pipeline, on_disk) for pipeline in best_pipelines(task)]


def _without_end(task: Task, on_disk: Sequence[Sequence[int]]) -> Iterator[list[Ranges]]:
    """Pipelines as if nobody had the model's end to run, of fleets that are so small that this takes no time."""
    if len(task.candidates) <= _MANY and any(c.after_s for c in task.candidates):
        yield _planned(replace(task, candidates=[replace(c, after_s=0.0) for c in task.candidates]), on_disk)


def _best_ranges(task: Task, plans: Sequence[Sequence[Ranges]]) -> Ranges:
    everybody = range(len(task.candidates))
    layouts: list[Ranges] = []
    for pipelines in plans:
        planned = {i: blocks for ranges in pipelines for i, blocks in ranges.items()}
        spare = [i for i in everybody if i not in planned]
        layouts += [planned, least_served(task.n_blocks, task.candidates, planned, spare)]
    layouts.append(least_served(task.n_blocks, task.candidates, {}, everybody))
    ranked = [(found, -i) for i, layout in enumerate(layouts) if (found := _rank(task, layout)) is not None]
    return layouts[-min(ranked)[1]]


def _rank(task: Task, ranges: Ranges) -> Rank | None:
    """Of a layout by the model; None if it leaves blocks out."""
    speed = speed_of(segments_of(task, ranges), task.n_blocks)
    return rank(task.objective, speed.step_s, speed.tokens_per_s) if speed is not None else None


def segments_of(task: Task, ranges: Ranges) -> list[Segment]:
    """The ranges as what a route is made of."""
    names = {i: task.candidates[i].worker_id for i in ranges}
    return [
        Segment(
            worker_id=names[i],
            blocks=blocks,
            seconds_per_block=task.candidates[i].seconds_per_block,
            after_s=task.candidates[i].after_s,
            link_s={names[k]: task.links[i][k] for k in ranges if task.links[i][k] != LINK_S and k != i},
        )
        for i, blocks in ranges.items()
    ]


def _quick(candidates: Sequence[Candidate], n_blocks: int) -> Sequence[Candidate]:
    """Those who matter: with more than can be planned with, the fastest and the roomiest."""
    usable = [c for c in candidates if c.cap() > 0]
    if len(usable) <= MAX_WORKERS:
        return usable
    fastest = sorted(usable, key=lambda c: (c.seconds_per_block, c.worker_id))
    roomiest = sorted(usable, key=lambda c: (-min(c.cap(), n_blocks), c.seconds_per_block, c.worker_id))
    chosen: dict[WorkerId, Candidate] = {}
    for fast, roomy in zip(fastest, roomiest, strict=True):
        chosen[fast.worker_id], chosen[roomy.worker_id] = fast, roomy
        if len(chosen) >= MAX_WORKERS - 1:
            break
    return list(chosen.values())


def _bytes_on_disk(state: ClusterState, model: ModelRecord, worker_id: WorkerId) -> list[int]:
    """For each block, how much of its file the worker has."""
    files = state.workers[worker_id].files
    return [block.size_bytes if block.sha256 in files else 0 for block in model.manifest.blocks]


def _turned(task: Task, pipeline: Pipeline, on_disk: Sequence[Sequence[int]]) -> Ranges:
    """The pipeline from that place in its ring, and in that direction, in which the least has to be fetched.

    Who is last has the model's end to run, and so shares are made anew; hardly slower is near enough.
    """
    best, most_bytes = _ranges(pipeline), -1
    for order in (pipeline.members, pipeline.members[::-1]):
        if ring_s(task.links, order) > pipeline.ring_s * (1 + 1e-9):
            continue
        for i in range(len(order)):
            turned = pipeline if order[i:] + order[:i] == pipeline.members else _as_good(task, pipeline, order, i)
            if turned is None:
                continue
            ranges = _ranges(turned)
            n_bytes = sum(sum(on_disk[member][blocks.start : blocks.end]) for member, blocks in ranges.items())
            if n_bytes > most_bytes:
                best, most_bytes = ranges, n_bytes
    return best


def _as_good(task: Task, pipeline: Pipeline, order: tuple[int, ...], first: int) -> Pipeline | None:
    """A pipeline of this ring, begun at its place `first`, that is hardly slower, if there is one."""
    most = 1 + MAX_GIVEN_UP
    return next(
        (
            found
            for found in pipelines_of(task, order[first:] + order[:first])
            if found.step_s <= pipeline.step_s * most and found.slowest_s <= pipeline.slowest_s * most
        ),
        None,
    )


def _ranges(pipeline: Pipeline) -> Ranges:
    ranges, start = {}, 0
    for member, n in zip(pipeline.members, pipeline.shares.given, strict=True):
        ranges[member] = BlockRange(start, start + n)
        start += n
    return ranges
