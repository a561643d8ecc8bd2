"""What routes are made of: ready ranges of blocks on workers, with what they cost. Knows no cluster."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from coordinator.policy.links import LINK_S
from protocol.ids import BlockRange, WorkerId


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A ready range on a worker, with what it costs."""

    worker_id: WorkerId
    blocks: BlockRange
    seconds_per_block: float
    link_s: Mapping[WorkerId, float]
    """One way to other workers, as measured from here."""
    entry_s: float = 0.0
    """Added wherever the worker is entered: what it costs in trust; less than nothing for what it saves."""
    is_whole: bool = False
    """Whether it is run from its first block to its last or not at all: what it saves depends on that."""
    short_links: tuple[tuple[WorkerId, float], ...] = field(init=False)
    """Those that take less than a link that nobody measured."""

    def __post_init__(self) -> None:
        """Look through the links once: routes are looked for far more often than links are measured."""
        short = tuple((peer, seconds) for peer, seconds in self.link_s.items() if seconds < LINK_S)
        object.__setattr__(self, "short_links", short)

    def can_be_entered(self, block: int) -> bool:
        """Whether a route may come in before this block."""
        return block == self.blocks.start if self.is_whole else self.blocks.start <= block < self.blocks.end

    def can_be_left(self, block: int) -> bool:
        """Whether a route may go on elsewhere before this block."""
        return block == self.blocks.end if self.is_whole else self.blocks.start < block <= self.blocks.end


Leg = tuple[int, int, int]
"""Which segment, from which block, to which."""


def back_s(last: Segment, first: Segment) -> float:
    """The way of a token back to the first worker: none if that is the last one too."""
    return 0.0 if last.worker_id == first.worker_id else last.link_s.get(first.worker_id, LINK_S)


def cost_s(segments: Sequence[Segment], legs: Sequence[Leg]) -> float:
    """What a way round costs, the client's own way to the first worker too; endless if a worker comes twice."""
    workers = [segments[i].worker_id for i, _, _ in legs]
    if len(set(workers)) < len(workers):
        return math.inf
    links_s = LINK_S + back_s(segments[legs[-1][0]], segments[legs[0][0]])
    links_s += sum(segments[i].link_s.get(to, LINK_S) for (i, _, _), to in zip(legs, workers[1:], strict=False))
    return links_s + sum(segments[i].entry_s + (b - a) * segments[i].seconds_per_block for i, a, b in legs)
