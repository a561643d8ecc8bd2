"""What a session may be sent and when: positions without gaps, and credit for steps. Pure, no I/O.

The last positions may be guesses (drafts): then the next step begins at any of them, the first that didn't hold, or
after all.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from protocol.errors import ContextExceededError, ProtocolError, StaleEpochError
from protocol.messages import STEP_CREDIT

CREDIT_BATCH = STEP_CREDIT // 2
"""Steps consumed before a `Credit` is sent: half, so that the sender never has to stop, at half the messages."""


@dataclass(slots=True, kw_only=True)
class Arrivals:
    """What has come in for one session. Only a head (`is_fed`) gets tokens fed, once its prompt is complete."""

    max_positions: int
    is_fed: bool
    is_private: bool = False
    """Whether a client runs the model's ends. It can't know what holds, and what is run anew would count once."""
    next_position: int = 0
    n_drafts: int = 0
    """How many of the positions before the next are guesses."""
    is_prompt_complete: bool = False
    n_uncredited: int = 0
    n_unconsumed_feeds: int = 0
    _n_consumed: int = 0

    def resume(self, n_positions: int) -> None:
        """So many positions are here from another session; the first step begins after them or anywhere before."""
        if self.next_position == 0:
            self.next_position = self.n_drafts = n_positions

    def take_step(self, position: int, n_tokens: int, *, is_last: bool, n_drafts: int = 0) -> None:
        """Take a step of [position, position + n_tokens), of which the last `n_drafts` are guesses.

        Raises:
            StaleEpochError: it doesn't begin at the next position, nor where a guess was.
            ProtocolError: more steps than credit, or a step where fed tokens are due, or guesses of a client's.
            ContextExceededError: more positions than the ticket grants.
        """
        if self.n_uncredited >= STEP_CREDIT:
            raise ProtocolError(f"a step beyond the credit of {STEP_CREDIT}: wait for Credit before the next")
        self._check(position, n_tokens)
        if self.is_fed and self.is_prompt_complete:
            raise ProtocolError("the prompt is complete: its last step said is_last")
        if (self.is_fed or self.is_private) and n_drafts:
            raise ProtocolError(f"{n_drafts} drafts of a client's: those are a head's to make")
        self.next_position, self.n_drafts = position + n_tokens, n_drafts
        self.n_uncredited += 1
        self.is_prompt_complete = is_last

    def take_fed(self, position: int) -> None:
        """Take a token that the tail sampled for `position`; guesses for positions before it have held.

        Raises:
            StaleEpochError: it isn't the next position, nor where a guess was.
            ProtocolError: the prompt isn't complete, or tokens come faster than they are run.
            ContextExceededError: more positions than the ticket grants.
        """
        if not self.is_fed or not self.is_prompt_complete or self.n_unconsumed_feeds >= STEP_CREDIT:
            raise ProtocolError(f"a token fed for position {position} where none is due")
        self._check(position, 1)
        self.next_position, self.n_drafts = position + 1, 0
        self.n_unconsumed_feeds += 1

    def drafted(self, n_drafts: int) -> None:
        """The head runs as many guesses behind the token that was fed last."""
        self.next_position += n_drafts
        self.n_drafts = n_drafts

    def fed_consumed(self) -> None:
        """A fed token was run."""
        self.n_unconsumed_feeds -= 1

    def step_consumed(self) -> int:
        """A step was run; how many steps of credit to send now, maybe none."""
        self._n_consumed += 1
        if self._n_consumed < CREDIT_BATCH:
            return 0
        granted, self._n_consumed = self._n_consumed, 0
        self.n_uncredited -= granted
        return granted

    def _check(self, position: int, n_tokens: int) -> None:
        if not self.next_position - self.n_drafts <= position <= self.next_position:
            raise StaleEpochError(f"a step at position {position}; the session's next is {self.next_position}")
        if position + n_tokens > self.max_positions:
            raise ContextExceededError(
                f"positions up to {position + n_tokens}; the route grants {self.max_positions}"
            )


def check_token_id(token_id: int) -> None:
    """Refuse what no vocabulary has, before it is made a tensor of; the engine knows the model's own limit.

    Raises:
        ProtocolError: below 0, or more than 31 bits.
    """
    if not 0 <= token_id < 2**31:
        raise ProtocolError(f"token id {token_id} is one of no vocabulary")


def chunks(position: int, n_tokens: int, chunk_tokens: int) -> list[range]:
    """The positions [position, position + n_tokens) in as few pieces of at most `chunk_tokens` as it takes.

    All of about the same length: with k pieces, two stages that work at once are done after (k + 1) / k of one's
    time, and an uneven piece makes the other stage wait.
    """
    n_pieces = -(-n_tokens // chunk_tokens)
    ends = [position + n_tokens * i // n_pieces for i in range(n_pieces + 1)]
    return [range(start, end) for start, end in pairwise(ends)]
