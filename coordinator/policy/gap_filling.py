"""Give a run of blocks that nobody holds to workers: who takes part, in which order, how much each.

A worker holds one range of a model, since a session has one place on a worker: so blocks go to workers that hold
none of the model, and to those whose range ends or begins where the run does, which then grows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from coordinator.policy.filling import Stage, water_filled
from protocol.ids import BlockRange, WorkerId

_CHOICE = 4
"""Workers looked at for each block: each takes one at least, so more than one have somebody to be left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A worker that may take a part of the run. Bytes are at its precision, caches included."""

    worker_id: WorkerId
    seconds_per_block: float
    room_bytes: int
    """What more it can hold."""
    block_bytes: int
    """Of the largest block, so that a count of blocks is safe wherever they are."""
    before_bytes: int
    after_bytes: int
    both_bytes: int
    """What comes before the first and after the last block together; tied embeddings count once."""
    after_s: float = 0.0
    """Seconds that one token takes after the last block, if it holds that."""
    held: BlockRange | None = None
    """Of a grower: the range that it holds and keeps."""

    def cap(self, *, is_first: bool = False, is_last: bool = False) -> int:
        """Most blocks that it has room for, if its range holds the model's first or last block."""
        ends = {(True, True): self.both_bytes, (True, False): self.before_bytes, (False, True): self.after_bytes}
        return max(0, (self.room_bytes - ends.get((is_first, is_last), 0)) // self.block_bytes)

    def stage_s(self, blocks: BlockRange, n_blocks: int) -> float:
        """Seconds that one token takes in these blocks of so many, and after the last of all."""
        return len(blocks) * self.seconds_per_block + (self.after_s if blocks.end == n_blocks else 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Filling:
    """Ranges given, and how good that is."""

    given: dict[WorkerId, BlockRange]
    """Of a grower: the whole range that it holds then."""
    n_missing: int
    bottleneck_s: float
    """Seconds that the slowest of those that were given something takes for one token."""

    @property
    def rank(self) -> tuple[int, float]:
        """Less is better."""
        return self.n_missing, self.bottleneck_s


def filled(
    gap: BlockRange,
    n_blocks: int,
    free: Sequence[Candidate],
    left: Candidate | None = None,
    right: Candidate | None = None,
) -> Filling:
    """The best way found to give `gap` to these: `left` may grow up into it, `right` down, `free` share the middle.

    Since it can depend on who is first or last (and so needs room for embeddings or head) whether all fits, the
    roomiest are tried at the ends too; and last who runs the head quickest. If it can't all be held, as much as
    possible is, from the first block on.
    """
    free = _quick(free, gap)
    orders = [list(free)]
    if len(free) > 1:
        roomiest = sorted(free, key=lambda c: (-c.room_bytes, c.worker_id))[:2]
        middle = [c for c in free if c not in roomiest]
        orders += [[roomiest[0], *middle, roomiest[1]], [roomiest[1], *middle, roomiest[0]]]
        quickest = min(free, key=lambda c: (c.after_s, c.worker_id))
        orders.append([*(c for c in free if c is not quickest), quickest])
    return min((_in_order(gap, n_blocks, order, left, right) for order in orders), key=lambda f: f.rank)


def _quick(free: Sequence[Candidate], gap: BlockRange) -> list[Candidate]:
    """Those who may matter, in the same order: with hundreds to choose from, the fastest and the roomiest."""
    usable = [c for c in free if c.cap() > 0]
    if len(usable) <= _CHOICE * len(gap):
        return usable
    fastest = sorted(usable, key=lambda c: (c.seconds_per_block, c.worker_id))[: _CHOICE * len(gap)]
    roomiest = sorted(usable, key=lambda c: (-c.room_bytes, c.worker_id))[: len(gap) + 1]
    chosen = {c.worker_id for c in (*fastest, *roomiest)}
    return [c for c in usable if c.worker_id in chosen]


def _in_order(
    gap: BlockRange, n_blocks: int, free: list[Candidate], left: Candidate | None, right: Candidate | None
) -> Filling:
    whole = _shared(gap, n_blocks, free, left, right)
    if whole.n_missing == 0 or gap.end < n_blocks or len(gap) == 1:
        return whole
    # without the last block nobody needs room for the head
    part = _shared(BlockRange(gap.start, gap.end - 1), n_blocks, free, left, None)
    part = Filling(given=part.given, n_missing=part.n_missing + 1, bottleneck_s=part.bottleneck_s)
    return min(whole, part, key=lambda f: f.rank)


def _shared(
    gap: BlockRange, n_blocks: int, free: list[Candidate], left: Candidate | None, right: Candidate | None
) -> Filling:
    """Water-fill `gap` in this order; who has no room at its end of the model is left out."""
    free, caps = _free_caps(gap, n_blocks, free)
    stages = [
        Stage(
            seconds_per_block=c.seconds_per_block,
            cap=n,
            fixed_s=c.after_s if c is free[-1] and gap.end == n_blocks else 0.0,
        )
        for c, n in zip(free, caps, strict=True)
    ]
    order = list(free)
    if left is not None:
        order.insert(0, left)
        becomes_last = gap.end == n_blocks and not free
        stages.insert(0, _grower(left, gap, touches_end=gap.end == n_blocks, is_last=becomes_last))
    if right is not None:
        order.append(right)
        is_last = right.held is not None and right.held.end == n_blocks
        stages.append(_grower(right, gap, touches_end=gap.start == 0, is_last=is_last))
    given = water_filled(len(gap), stages)
    times = [stage.time_s(n) for stage, n in zip(stages, given, strict=True) if n > 0]
    return Filling(
        given=_laid_out(gap, order, given, right),
        n_missing=len(gap) - sum(given),
        bottleneck_s=max(times, default=0.0),
    )


def _free_caps(gap: BlockRange, n_blocks: int, free: list[Candidate]) -> tuple[list[Candidate], list[int]]:
    """Who shares the run and at most how many blocks each; the first and last of them own the model's ends."""
    while free:
        last = len(free) - 1
        caps = [
            candidate.cap(is_first=i == 0 == gap.start, is_last=i == last and gap.end == n_blocks)
            for i, candidate in enumerate(free)
        ]
        if 0 not in caps:
            # with more workers than blocks, the fastest stay, and their places are counted anew
            if len(free) <= len(gap):
                return free, caps
            slowest = max(range(len(free)), key=lambda i: (free[i].seconds_per_block, i))
            free = [c for i, c in enumerate(free) if i != slowest]
        else:
            i = caps.index(0)
            free = free[:i] + free[i + 1 :]
    return [], []


def _grower(candidate: Candidate, gap: BlockRange, *, touches_end: bool, is_last: bool) -> Stage:
    """The stage of a worker whose range grows; only taking the whole run may make it own an end of the model."""
    assert candidate.held is not None
    cap = min(candidate.cap(), len(gap))
    owns_end = candidate.cap(is_first=gap.start == 0, is_last=gap.start > 0)
    if touches_end and cap == len(gap) and owns_end < len(gap):
        cap -= 1
    return Stage(
        seconds_per_block=candidate.seconds_per_block,
        cap=cap,
        fixed_s=len(candidate.held) * candidate.seconds_per_block + (candidate.after_s if is_last else 0.0),
        must_take_part=False,
    )


def _laid_out(
    gap: BlockRange, order: Sequence[Candidate], given: Sequence[int], right: Candidate | None
) -> dict[WorkerId, BlockRange]:
    """Counts as ranges: from the start of the run up, but the range of `right` stays in one piece with its own."""
    ranges: dict[WorkerId, BlockRange] = {}
    start = gap.start
    for candidate, n in zip(order, given, strict=True):
        if n == 0:
            continue
        if candidate is right and candidate.held is not None:
            ranges[candidate.worker_id] = BlockRange(gap.end - n, candidate.held.end)
            continue
        held_from = start if candidate.held is None else candidate.held.start
        ranges[candidate.worker_id] = BlockRange(held_from, start + n)
        start += n
    return ranges
