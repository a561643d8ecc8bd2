"""Sessions that broke off and may go on by another route: what is kept of them, for how long, and for whom. Pure.

A parked session's memory counts as used until somebody else needs it: then the oldest goes first. Its positions are
of use to one session only, the one whose ticket says that it continues it, and only on the same blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

from protocol.ids import SessionId
from worker.history import History
from worker.steps import SessionSpec, SpanKey

PARK_S = 30.0
"""A client looks for another route at once; later than this it won't come any more."""
MAX_PARKED = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Parked:
    """A session that is over, and what it left: its cache, in the engine under its id, and its history."""

    spec: SessionSpec
    n_bytes: int
    until_s: float
    """On the loop's clock."""
    history: History


@dataclass(frozen=True, slots=True)
class ParkingLot:
    """All that is parked, oldest first."""

    parked: tuple[Parked, ...] = ()

    @property
    def n_bytes(self) -> int:
        """Of all of them, together."""
        return sum(one.n_bytes for one in self.parked)

    def of_span(self, span: SpanKey) -> tuple[Parked, ...]:
        """Those that can't outlive this span."""
        return tuple(one for one in self.parked if one.spec.span == span)

    def expired(self, now_s: float) -> tuple[Parked, ...]:
        """Those for whom nobody comes any more."""
        return tuple(one for one in self.parked if now_s >= one.until_s)

    def in_the_way(self, n_missing_bytes: int) -> tuple[Parked, ...]:
        """The oldest that have to go so that so many bytes are free; all, if that isn't enough."""
        n_freed, going = 0, 0
        while n_freed < n_missing_bytes and going < len(self.parked):
            n_freed += self.parked[going].n_bytes
            going += 1
        return self.parked[:going]

    def surplus(self) -> tuple[Parked, ...]:
        """The oldest beyond `MAX_PARKED`."""
        return self.parked[: max(0, len(self.parked) - MAX_PARKED)]

    def left_for(self, spec: SessionSpec) -> Parked | None:
        """What the session may take over: its predecessor on the same blocks, if the cache has room enough."""
        for one in self.parked:
            if one.spec.session_id == spec.continues:
                is_same_part = (one.spec.span, one.spec.blocks) == (spec.span, spec.blocks)
                return one if is_same_part and one.spec.n_positions >= spec.n_positions else None
        return None

    def with_one(self, newcomer: Parked) -> ParkingLot:
        """The lot with one more."""
        return ParkingLot((*self.parked, newcomer))

    def without(self, session_id: SessionId) -> ParkingLot:
        """The lot without that session."""
        return ParkingLot(tuple(one for one in self.parked if one.spec.session_id != session_id))


@dataclass(frozen=True, slots=True, kw_only=True)
class TakenOver:
    """What a session that continues another begins with."""

    n_cached: int
    """Positions in the cache."""
    history: History

    def n_held(self, *, is_head: bool, is_tail: bool) -> int:
        """Positions that needn't be run again, if the text is the same.

        A head must know their tokens, and whoever hands on must have what came of them: the last step may have
        been broken off between one and the other.
        """
        lengths = [self.n_cached]
        if is_head:
            lengths.append(len(self.history.token_ids))
        if not is_tail:
            lengths.append(self.history.n_states)
        return min(lengths)


def n_rows_held(position: int, n_tokens: int, n_held: int, *, is_last: bool) -> int:
    """How many of a step's first positions needn't be run; of a prompt's last step, the last row always has to."""
    end = position + n_tokens - 1 if is_last else position + n_tokens
    return max(0, min(n_held, end) - position)
