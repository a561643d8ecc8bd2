"""Who may open, attach to and feed a session: checks of tickets against what this worker knows. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from protocol.control_messages import EndSessions
from protocol.errors import (
    ClockSkewError,
    ContextExceededError,
    ForbiddenError,
    InvalidRequestError,
    StaleEpochError,
    TooLargeError,
    UnauthenticatedError,
)
from protocol.ids import BlockRange, ModelName, Revision, SessionId, WorkerId
from protocol.messages import AttachTail, OpenSession, SamplingParams
from protocol.tensors import tensor_from_bytes
from protocol.tickets import AttachTicket, Ticket, signed_claims
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
            UnauthenticatedError: no ticket of this worker's for this session.
            ClockSkewError: it has expired.
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
        if not 0 <= message.n_prompt <= ticket.max_positions:
            raise InvalidRequestError(
                f"a prompt of {message.n_prompt} tokens; the route grants {ticket.max_positions} positions"
            )
        if (ticket.next is None) != (len(message.tickets) == 1):
            raise InvalidRequestError(
                f"{len(message.tickets) - 1} tickets for later hops, but the route says otherwise"
            )
        return ticket

    def ticket_to_attach(self, message: AttachTail) -> AttachTicket:
        """The ticket by which a client may have the tokens of a session whose tail this is.

        Raises:
            UnauthenticatedError: no attach ticket of this worker's for this session.
            ClockSkewError: it has expired.
        """
        return self._verified(message.ticket, AttachTicket, message.session_id)

    def _verified(self, text: str, kind: type[T], session_id: SessionId) -> T:
        ticket = signed_claims(text, kind, self.ticket_keys)
        if ticket.worker_id != self.worker_id or ticket.session_id != session_id:
            raise UnauthenticatedError("the token doesn't verify")
        if len(session_id) > MAX_SESSION_ID_CHARS or not math.isfinite(ticket.expires_at_s):
            raise UnauthenticatedError("the token doesn't verify")
        if self.now_s >= ticket.expires_at_s:
            # made a moment ago, if it wasn't kept for an hour: a clock is wrong, and nobody knows whose
            raise ClockSkewError(
                f"the ticket expired {self.now_s - ticket.expires_at_s:.0f} s ago by the clock of worker "
                f"{self.worker_id}; new ones are good for an hour, so the coordinator's clock and the worker's are "
                "an hour apart or more: set both right (NTP)"
            )
        return ticket


def is_ring_of(ticket: Ticket, peer: WorkerId | None) -> bool:
    """Whether the peer is the tail of the ticket's route and this worker its head: tokens come from there."""
    return peer is not None and peer == ticket.tail and ticket.worker_id == ticket.head


def is_to_end(ticket: Ticket, order: EndSessions) -> bool:
    """Whether the coordinator wants the session of this ticket ended."""
    return ticket.session_id in order.session_ids or banned_beside(ticket, order) is not None


def banned_beside(ticket: Ticket, order: EndSessions) -> WorkerId | None:
    """The worker that a session deals with and mustn't any more, if there is one."""
    beside = {ticket.previous, ticket.next, ticket.head, ticket.tail} - {ticket.worker_id, None}
    return next((worker_id for worker_id in order.neighbours if worker_id in beside), None)


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


def prompt_token_ids(payload: bytes | memoryview, max_positions: int) -> tuple[int, ...]:
    """The prompt that comes with `AttachTail`, if the route grants as many positions.

    Raises:
        InvalidRequestError: it is none.
        TooLargeError: it is longer.
    """
    n_tokens = len(payload) // 4
    if n_tokens < 1:
        raise InvalidRequestError("the prompt's token ids (int32) have to come with AttachTail")
    if n_tokens > max_positions:
        raise TooLargeError(f"{n_tokens} token ids; the route grants {max_positions} positions")
    ids: list[int] = tensor_from_bytes(payload, "int32", (n_tokens,)).tolist()
    if min(ids) < 0:
        raise InvalidRequestError("a token id below 0")
    return tuple(ids)
