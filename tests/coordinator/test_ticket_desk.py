"""Tickets are signed with the key of the worker's newest socket, as long as that is open."""

from __future__ import annotations

import pytest

from coordinator.policy.routing import RouteStage
from coordinator.ticket_desk import TICKET_LIFE_S, TicketDesk
from protocol.errors import ModelUnavailableError, UnauthenticatedError
from protocol.ids import BlockRange, ModelName, Revision, SessionId, WorkerId
from protocol.messages import PROTOCOL_VERSION
from protocol.rest import RouteHop
from protocol.tickets import AttachTicket, Ticket, verified_claims

A, B = WorkerId("w-a"), WorkerId("w-b")


def stage(worker_id: WorkerId, start: int, end: int) -> RouteStage:
    return RouteStage(
        worker_id=worker_id,
        url=f"https://{worker_id}:1",
        blocks=BlockRange(start, end),
        precision="float32",
        epoch=7,
    )


def hops(desk: TicketDesk, *stages: RouteStage, speculate: bool = True) -> tuple[RouteHop, ...]:
    return desk.hops(
        stages,
        session_id=SessionId("s"),
        model=ModelName("m"),
        revision=Revision("r"),
        max_positions=9,
        now_s=100.0,
        speculate=speculate,
    )


def test_each_hop_has_a_ticket_that_only_its_worker_can_verify() -> None:
    desk = TicketDesk()
    with desk.serving(A, b"key of a"), desk.serving(B, b"key of b"):
        first, second = hops(desk, stage(A, 0, 2), stage(B, 2, 4))
    ticket = verified_claims(first.ticket, Ticket, (b"key of a",), 100.0)
    assert (ticket.worker_id, ticket.previous, ticket.next, ticket.tail) == (A, None, B, B)
    assert (ticket.next_url, ticket.epoch, ticket.max_positions) == ("https://w-b:1", 7, 9)
    assert verified_claims(second.ticket, Ticket, (b"key of b",), 100.0).previous == A
    with pytest.raises(UnauthenticatedError):
        verified_claims(first.ticket, Ticket, (b"key of b",), 100.0)
    with pytest.raises(UnauthenticatedError, match="expired"):
        verified_claims(first.ticket, Ticket, (b"key of a",), 100.0 + TICKET_LIFE_S)


@pytest.mark.parametrize(
    ("version", "asked", "expected"),
    [(PROTOCOL_VERSION, True, True), (PROTOCOL_VERSION, False, False), ("1.1", True, False), ("1.0", True, False)],
)
def test_tokens_are_guessed_where_the_client_lets_and_every_hop_knows_how(
    version: str, asked: bool, expected: bool
) -> None:
    desk = TicketDesk()
    with desk.serving(A, b"key of a"), desk.serving(B, b"key of b", version):
        first, _ = hops(desk, stage(A, 0, 2), stage(B, 2, 4), speculate=asked)
    assert verified_claims(first.ticket, Ticket, (b"key of a",), 100.0).speculates == expected


def test_only_the_tail_can_verify_the_attach_ticket() -> None:
    desk = TicketDesk()
    route = (stage(A, 0, 2), stage(B, 2, 4))
    with desk.serving(A, b"key of a"), desk.serving(B, b"key of b"):
        text = desk.attach_ticket(route, session_id=SessionId("s"), max_positions=9, now_s=100.0)
    ticket = verified_claims(text, AttachTicket, (b"key of b",), 100.0)
    assert (ticket.worker_id, ticket.session_id, ticket.max_positions) == (B, "s", 9)
    assert ticket.expires_at_s == 100.0 + TICKET_LIFE_S
    with pytest.raises(UnauthenticatedError):
        verified_claims(text, AttachTicket, (b"key of a",), 100.0)
    with pytest.raises(UnauthenticatedError):
        verified_claims(text, Ticket, (b"key of b",), 100.0)
    with pytest.raises(ModelUnavailableError):
        desk.attach_ticket(route, session_id=SessionId("s"), max_positions=9, now_s=100.0)


def test_the_newest_socket_counts_and_the_older_ones_end_takes_nothing_away() -> None:
    desk = TicketDesk()
    older = desk.serving(A, b"old")
    older.__enter__()
    with desk.serving(A, b"new"):
        older.__exit__(None, None, None)
        (hop,) = hops(desk, stage(A, 0, 4))
    assert verified_claims(hop.ticket, Ticket, (b"new",), 100.0).worker_id == A


def test_a_worker_whose_socket_is_closed_gets_no_tickets() -> None:
    desk = TicketDesk()
    with desk.serving(A, b"key"):
        pass
    with pytest.raises(ModelUnavailableError) as caught:
        hops(desk, stage(A, 0, 4))
    assert caught.value.retry_after_s is not None
