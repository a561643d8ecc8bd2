"""Ranges for workers one after the other, each where the throughput so far is least: the rule of Petals.

It is how workers that are left over from pipelines are put to use, and one of the layouts that are weighed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from coordinator.policy.gap_filling import Candidate
from protocol.ids import BlockRange

Ranges = dict[int, BlockRange]
"""By the worker's number."""


def least_served(n_blocks: int, candidates: Sequence[Candidate], ranges: Ranges, workers: Iterable[int]) -> Ranges:
    """These ranges and one for each of the workers in turn, as long as it has room for."""
    per_s, found = [0.0] * n_blocks, dict(ranges)
    for worker, blocks in ranges.items():
        _add(per_s, candidates[worker], blocks, n_blocks)
    for worker in workers:
        fitting = list(ranges_that_fit(candidates[worker], n_blocks))
        if not fitting:
            continue
        n = min(len(blocks) for blocks in fitting)
        found[worker] = min(fitting, key=lambda b: (sorted(per_s[b.start : b.end])[:n], -len(b)))
        _add(per_s, candidates[worker], found[worker], n_blocks)
    return found


def ranges_that_fit(candidate: Candidate, n_blocks: int) -> Iterator[BlockRange]:
    """The longest from each block on; shorter where the model's ends take room too."""
    if candidate.cap(is_first=True, is_last=True) >= n_blocks:
        yield BlockRange(0, n_blocks)
        return
    if n := min(candidate.cap(is_first=True), n_blocks - 1):
        yield BlockRange(0, n)
    if (n := min(candidate.cap(), n_blocks - 2)) > 0:
        yield from (BlockRange(start, start + n) for start in range(1, n_blocks - n))
    if n := min(candidate.cap(is_last=True), n_blocks - 1):
        yield BlockRange(n_blocks - n, n_blocks)


def _add(per_s: list[float], candidate: Candidate, blocks: BlockRange, n_blocks: int) -> None:
    stage_s = candidate.stage_s(blocks, n_blocks)
    for block in range(blocks.start, blocks.end):
        per_s[block] += 1 / stage_s
