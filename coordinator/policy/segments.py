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
    is_head: bool = False
    """Whether it can only be entered before its first block: what entering costs is that of a way's beginning."""
    is_tail: bool = False
    """Whether it can only be left after its last block: likewise of a way's end."""
    after_s: float = 0.0
    """Added where a way ends here: what a token takes after the model's last block."""
    short_links: tuple[tuple[WorkerId, float], ...] = field(init=False)
    """Those that take less than a link that nobody measured."""
    latest_entry: int = field(init=False)
    """The last block before which a route may come in."""
    earliest_exit: int = field(init=False)
    """The first block before which a route may go on elsewhere."""
    is_bound: bool = field(init=False)
    """Whether there are blocks of its own that it can't be entered or left before."""

    def __post_init__(self) -> None:
        """Work out what routes ask of it: they are looked for far more often than links are measured."""
        short = tuple((peer, seconds) for peer, seconds in self.link_s.items() if seconds < LINK_S)
        object.__setattr__(self, "short_links", short)
        start, end = self.blocks.start, self.blocks.end
        object.__setattr__(self, "latest_entry", start if self.is_whole or self.is_head else end - 1)
        object.__setattr__(self, "earliest_exit", end if self.is_whole or self.is_tail else start + 1)
        object.__setattr__(self, "is_bound", self.is_whole or self.is_head or self.is_tail)

    def can_be_entered(self, block: int) -> bool:
        """Whether a route may come in before this block."""
        return self.blocks.start <= block <= self.latest_entry

    def can_be_left(self, block: int) -> bool:
        """Whether a route may go on elsewhere before this block."""
        return self.earliest_exit <= block <= self.blocks.end


DIGITS = 12
"""Costs in seconds that differ by less differ by rounding: in what order they were summed up decides nothing."""

ANSWER_TOKENS = 128
"""Over how many tokens what is paid or saved once is spread, if more are asked for: answers mostly stop by
themselves."""

CLIENT = WorkerId("client")
"""As a stage of a private session's ring; no worker's id has this form."""

Leg = tuple[int, int, int]
"""Which segment, from which block, to which."""


def back_s(last: Segment, first: Segment) -> float:
    """The way of a token back to the first worker: none if that is the last one too."""
    return 0.0 if last.worker_id == first.worker_id else last.link_s.get(first.worker_id, LINK_S)


def cost_s(segments: Sequence[Segment], legs: Sequence[Leg]) -> float:
    """What a way round costs, the client's own way to the first worker too.

    Endless if a worker comes twice, or is entered or left where it can't be.
    """
    workers = [segments[i].worker_id for i, _, _ in legs]
    if len(set(workers)) < len(workers):
        return math.inf
    if not all(segments[i].can_be_entered(a) and segments[i].can_be_left(b) for i, a, b in legs):
        return math.inf
    links_s = LINK_S + back_s(segments[legs[-1][0]], segments[legs[0][0]])
    links_s += sum(segments[i].link_s.get(to, LINK_S) for (i, _, _), to in zip(legs, workers[1:], strict=False))
    run_s = sum(segments[i].entry_s + (b - a) * segments[i].seconds_per_block for i, a, b in legs)
    return links_s + run_s + segments[legs[-1][0]].after_s
