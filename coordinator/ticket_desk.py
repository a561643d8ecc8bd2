"""Tickets for the hops of a route and for its tokens, each signed with the key of the worker that it is for."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from msgspec import Struct

from coordinator.policy import state
from coordinator.policy.routing import RouteStage
from coordinator.waiting_room import Asker
from protocol.compatibility import knows, knows_message, understood_by
from protocol.errors import ModelUnavailableError
from protocol.ids import KeyId, ModelName, Revision, SessionId, WorkerId
from protocol.messages import PROTOCOL_VERSION, SamplingParams, SharedPrefix, Step
from protocol.rest import RouteHop
from protocol.tickets import AttachTicket, Returned, Ticket, sign_claims

TICKET_LIFE_S = state.TICKET_LIFE_S
"""Longer than any generation may take; a ticket is for one session, so it can't be used for another."""
_LABEL_BYTES = 12
"""Two keys with the same label would share as one: this is long enough for that never to happen."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Served:
    """A worker whose control socket is open."""

    key: bytes = field(repr=False)
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionTerms:
    """What all tickets of a session say alike, whichever way it takes."""

    asker: Asker
    session_id: SessionId
    model: ModelName
    revision: Revision
    max_positions: int
    now_s: float
    continues: SessionId | None = None
    """Whose cached positions the workers may have, as those of `prefix`."""
    prefix: SharedPrefix | None = None
    speculate: bool = True
    """Whether the head may guess tokens ahead, if all workers of the route know how to go back."""
    is_private: bool = False
    """Whether the client has hidden states alone, from which and to which it goes on."""
    returned: Returned = "tokens"

    @property
    def expires_at_s(self) -> float:
        """Until when the tickets are good."""
        return self.now_s + TICKET_LIFE_S


class TicketDesk:
    """Knows the ticket key of every connected worker: the one granted with the token that its socket showed.

    So after a rotation of the signing keys, and after a restart, a worker gets tickets that it can verify.
    """

    def __init__(self) -> None:
        self._served: dict[WorkerId, _Served] = {}
        self._label_key = secrets.token_bytes(32)
        """Of labels of API keys; a new one at each start, so that they can't be followed for long."""

    @contextmanager
    def serving(self, worker_id: WorkerId, key: bytes, version: str = PROTOCOL_VERSION) -> Iterator[None]:
        """Sign this worker's tickets with `key` as long as its control socket is open (the newest one counts).

        `version`: of the protocol, that the worker speaks and its tickets are to be understood in.
        """
        served = self._served[worker_id] = _Served(key=key, version=version)
        try:
            yield
        finally:
            if self._served.get(worker_id) is served:
                del self._served[worker_id]

    def hops(self, stages: Sequence[RouteStage], terms: SessionTerms) -> tuple[RouteHop, ...]:
        """The route as the client gets it.

        Raises:
            ModelUnavailableError: a worker's socket closed this very moment.
        """
        common = partial(
            Ticket,
            expires_at_s=terms.expires_at_s,
            session_id=terms.session_id,
            model=terms.model,
            revision=terms.revision,
            head=stages[0].worker_id,
            head_url=stages[0].url,
            tail=stages[-1].worker_id,
            max_positions=terms.max_positions,
            continues=terms.continues,
            prefix=terms.prefix,
            n_hops=len(stages),
            priority=terms.asker.priority,
            is_private=terms.is_private,
            returned=terms.returned,
            speculates=terms.speculate and all(self._can_speculate(stage.worker_id) for stage in stages),
        )
        tickets = (
            _ticket(partial(common, tenant=self._label(terms.asker.key_id, stage.worker_id)), stages, i)
            for i, stage in enumerate(stages)
        )
        return tuple(_hop(stage, self.signed(ticket)) for stage, ticket in zip(stages, tickets, strict=True))

    def attach_ticket(self, stages: Sequence[RouteStage], terms: SessionTerms) -> str:
        """What lets the client have the tokens, or hidden states, at the route's tail.

        Raises:
            ModelUnavailableError: the tail's socket closed this very moment.
        """
        ticket = AttachTicket(
            expires_at_s=terms.expires_at_s,
            worker_id=stages[-1].worker_id,
            session_id=terms.session_id,
            max_positions=terms.max_positions,
            gives_states=terms.is_private or terms.returned != "tokens",
        )
        return self.signed(ticket)

    def without_private(self) -> frozenset[WorkerId]:
        """Workers of versions that neither take hidden states from clients nor give them to any."""
        served = self._served.items()
        return frozenset(name for name, one in served if not knows(Ticket, "is_private", one.version))

    def without_newest_sampling(self) -> frozenset[WorkerId]:
        """Workers of versions that, as a tail, would pass over what is asked of sampling since 1.2."""
        served = self._served.items()
        return frozenset(name for name, one in served if not knows(SamplingParams, "constraint", one.version))

    def can_be_told(self, kind: type[Struct], worker_id: WorkerId) -> bool:
        """Whether a worker is here and knows this message of the control socket, to be told it or to say it."""
        served = self._served.get(worker_id)
        return served is not None and knows_message(kind, served.version)

    def _label(self, key_id: KeyId, worker_id: WorkerId) -> str:
        """By which a worker tells a key from others: neither which it is, nor whether another worker serves it."""
        named = f"{worker_id} {key_id}".encode()
        return hmac.digest(self._label_key, named, "sha256")[:_LABEL_BYTES].hex()

    def _can_speculate(self, worker_id: WorkerId) -> bool:
        """A worker has to know which positions of a step are guesses, or it takes what replaces them for stale."""
        served = self._served.get(worker_id)
        return served is not None and knows(Step, "drafts", served.version)

    def signed(self, ticket: Ticket | AttachTicket) -> str:
        """A ticket as its worker understands it, signed for it.

        Raises:
            ModelUnavailableError: the worker's socket closed this very moment.
        """
        try:
            served = self._served[ticket.worker_id]
        except KeyError:
            raise ModelUnavailableError(
                f"worker {ticket.worker_id} left the moment it was chosen; ask again", retry_after_s=1.0
            ) from None
        return sign_claims(understood_by(ticket, served.version), [served.key])


def _ticket(common: partial[Ticket], stages: Sequence[RouteStage], i: int) -> Ticket:
    """The ticket of hop `i`: what it has in common with the others, and its place among them."""
    stage, following = stages[i], stages[i + 1] if i + 1 < len(stages) else None
    return common(
        worker_id=stage.worker_id,
        blocks=stage.blocks,
        epoch=stage.epoch,
        previous=stages[i - 1].worker_id if i > 0 else None,
        next=following.worker_id if following is not None else None,
        next_url=following.url if following is not None else None,
    )


def _hop(stage: RouteStage, ticket: str) -> RouteHop:
    return RouteHop(
        worker_id=stage.worker_id,
        url=stage.url,
        blocks=stage.blocks,
        precision=stage.precision,
        quantization=stage.quantization,
        kv_precision=stage.kv_precision,
        ticket=ticket,
    )
