"""What routes are made of: ready ranges of blocks on workers, with what they cost. Knows no cluster."""

from __future__ import annotations

from collections.abc import Mapping
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
    least_link_s: float = field(init=False)
    """No way on takes less."""

    def __post_init__(self) -> None:
        """Look through the links once: routes are looked for far more often than links are measured."""
        object.__setattr__(self, "least_link_s", min(LINK_S, *self.link_s.values(), LINK_S))

    def can_be_entered(self, block: int) -> bool:
        """Whether a route may come in before this block."""
        return block == self.blocks.start if self.is_whole else self.blocks.start <= block < self.blocks.end

    def can_be_left(self, block: int) -> bool:
        """Whether a route may go on elsewhere before this block."""
        return block == self.blocks.end if self.is_whole else self.blocks.start < block <= self.blocks.end


Leg = tuple[int, int, int]
"""Which segment, from which block, to which."""
