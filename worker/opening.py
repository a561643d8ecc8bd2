"""Who may open, attach to and feed a session: checks of tickets against what this worker knows. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from protocol.errors import (
    ContextExceededError,
    ForbiddenError,
    InvalidRequestError,
    StaleEpochError,
    UnauthenticatedError,
)
from protocol.ids import BlockRange, ModelName, Revision, SessionId, WorkerId
from protocol.messages import AttachTail, OpenSession, SamplingParams
from protocol.tickets import AttachTicket, Ticket, verified_claims
from worker.holdings import Holdings
from worker.steps import SpanKey

MAX_TICKETS = 256
MAX_SESSION_ID_CHARS = 128

T = TypeVar("T", Ticket, AttachTicket)


@dataclass(frozen=True, slots=True, kw_only=True)
class Doorkeeper:
    """What tickets are checked against."""

    worker_id: WorkerId
    ticket_keys: Sequence[bytes]
    now_s: float

    def ticket_to_open(self, message: OpenSession, peer: WorkerId | None) -> Ticket:
        """The ticket by which `peer` (None: a client) may open a session here.

        Raises:
            UnauthenticatedError: no ticket of this worker's for this session, or an expired one.
            ForbiddenError: the ticket is for somebody else to use.
            InvalidRequestError: tickets and neighbours, or the deadline, make no sense.
        """
        if not 1 <= len(message.tickets) <= MAX_TICKETS:
            raise InvalidRequestError(f"{len(message.tickets)} tickets; 1 to {MAX_TICKETS} are taken")
        if not message.deadline_s > 0:
            raise InvalidRequestError(f"a deadline in {message.deadline_s} s; it must be above 0")
        ticket = self._verified(message.tickets[0], Ticket, message.session_id)
        if ticket.previous != peer:
            raise ForbiddenError(
                "this ticket is for another caller: sessions are opened hop by hop along the route"
            )
        if (ticket.next is None) != (len(message.tickets) == 1):
            raise InvalidRequestError(
                f"{len(message.tickets) - 1} tickets for later hops, but the route says otherwise"
            )
        return ticket

    def ticket_to_attach(self, message: AttachTail) -> AttachTicket:
        """The ticket by which a client may have the tokens of a session whose tail this is.

        Raises:
            UnauthenticatedError: no attach ticket of this worker's for this session, or an expired one.
        """
        return self._verified(message.ticket, AttachTicket, message.session_id)

    def _verified(self, text: str, kind: type[T], session_id: SessionId) -> T:
        ticket = verified_claims(text, kind, self.ticket_keys, self.now_s)
        if ticket.worker_id != self.worker_id or ticket.session_id != session_id:
            raise UnauthenticatedError("the token doesn't verify")
        if len(session_id) > MAX_SESSION_ID_CHARS or not math.isfinite(ticket.expires_at_s):
            raise UnauthenticatedError("the token doesn't verify")
        return ticket


def span_to_use(holdings: Holdings, model: ModelName, revision: Revision, blocks: BlockRange) -> SpanKey:
    """The loaded span for a ticket's blocks.

    Raises:
        StaleEpochError: they aren't loaded (any more).
    """
    span = holdings.span_for(model, revision, blocks)
    if span is None:
        raise StaleEpochError(
            f"blocks {blocks} of {model} are not loaded here (epoch {holdings.epoch}): ask for another route"
        )
    return span


def n_tokens_allowed(sampling: SamplingParams, n_prompt_tokens: int, max_positions: int) -> int:
    """How many tokens the tail may sample: what was asked, as far as the ticket's budget goes.

    Raises:
        InvalidRequestError: there is no prompt.
        ContextExceededError: the prompt leaves no position for an answer.
    """
    if n_prompt_tokens < 1:
        raise InvalidRequestError("the prompt has no tokens; at least 1 is needed")
    if n_prompt_tokens >= max_positions:
        raise ContextExceededError(
            f"a prompt of {n_prompt_tokens} tokens leaves no room in the {max_positions} positions of the route"
        )
    return min(sampling.max_tokens, max_positions - n_prompt_tokens)
