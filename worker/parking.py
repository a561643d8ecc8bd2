"""Sessions that are over and may be of use to others: what is kept of them, for how long, and for whom. Pure.

One that broke off is continued by another route; one that came to its end shares the beginning of its text with
those that follow it. What is kept counts as free memory: when somebody needs it, what was used longest ago goes
first. Only sessions of the same API key get at it (the coordinator signs whose), and only on the same blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

from protocol.ids import SessionId
from worker.history import History
from worker.steps import SessionSpec, SpanKey
from worker.text_lengths import ALL_ALIKE, TextLengths

PARK_S = 900.0
"""A chat whose next turn comes later than this is begun anew; an idle worker's memory isn't held for ever."""
MAX_PARKED = 256
_N_SPARED = 8
"""Positions by which a text may fall short of all that an earlier session ran: workers run a little more than a
client takes that stops by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parked:
    """A session that is over, and what it left: its cache, in the engine under its id, and its history."""

    spec: SessionSpec
    n_bytes: int
    """For the positions that it has run: memory for those that it might have run is given back."""
    until_s: float
    """On the loop's clock."""
    history: History

    @property
    def n_positions(self) -> int:
        """Positions that it has run, or was about to."""
        return self.history.n_settled

    def n_shared(self, spec: SessionSpec) -> int:
        """How many of its first positions are the new session's too."""
        if self.spec.session_id == spec.continues or spec.prefix is None:
            return min(self.n_positions, spec.n_positions)
        return min(self.n_positions, spec.n_positions, spec.prefix.n_positions)

    def is_replaced_by(self, spec: SessionSpec) -> bool:
        """Whether the new session has all that others could use of this one."""
        return self.spec.session_id == spec.continues or self.n_shared(spec) + _N_SPARED >= self.n_positions


@dataclass(frozen=True, slots=True)
class ParkingLot:
    """All that is parked, what was used longest ago first."""

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
        """The first that have to go so that so many bytes are free; all, if that isn't enough."""
        n_freed, going = 0, 0
        while n_freed < n_missing_bytes and going < len(self.parked):
            n_freed += self.parked[going].n_bytes
            going += 1
        return self.parked[:going]

    def surplus(self) -> tuple[Parked, ...]:
        """The first beyond `MAX_PARKED`."""
        return self.parked[: max(0, len(self.parked) - MAX_PARKED)]

    def left_for(self, spec: SessionSpec, lengths: TextLengths = ALL_ALIKE) -> Parked | None:
        """What the session may begin with: the one that it continues, else the one whose beginning it shares.

        `lengths`: what the model tells apart; what was rotated as in a text of another length is of no use.
        """
        earlier = (spec.continues, spec.prefix.session_id if spec.prefix is not None else None)
        found = {
            one.spec.session_id: one
            for one in self.parked
            if one.spec.session_id in earlier
            and (one.spec.span, one.spec.blocks) == (spec.span, spec.blocks)
            and lengths.are_alike(one.spec.n_prompt, spec.n_prompt)
        }
        return next((found[session_id] for session_id in earlier if session_id in found), None)

    def with_last(self, one: Parked) -> ParkingLot:
        """The lot with this one, new or used just now, as the last to go."""
        return ParkingLot((*self.without(one.spec.session_id).parked, one))

    def without(self, session_id: SessionId) -> ParkingLot:
        """The lot without that session."""
        return ParkingLot(tuple(one for one in self.parked if one.spec.session_id != session_id))


@dataclass(frozen=True, slots=True, kw_only=True)
class TakenOver:
    """What a session that goes on from another begins with."""

    n_cached: int
    """Positions in the cache."""
    history: History

    def n_held(self, *, is_head: bool, is_tail: bool) -> int:
        """Positions that needn't be run again, if the text is the same.

        A head must know their tokens, and whoever hands on must have what came of them: the last step may have
        been broken off between one and the other. Guesses in it were maybe not the text.
        """
        lengths = [self.n_cached, self.history.n_settled]
        if is_head:
            lengths.append(len(self.history.token_ids))
        if not is_tail:
            lengths.append(self.history.n_states)
        return min(lengths)


def n_rows_held(position: int, n_tokens: int, n_held: int, *, is_last: bool) -> int:
    """How many of a step's first positions needn't be run; of a prompt's last step, the last row always has to."""
    end = position + n_tokens - 1 if is_last else position + n_tokens
    return max(0, min(n_held, end) - position)
