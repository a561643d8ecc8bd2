"""Tickets are signed with the key of the worker's newest socket, as long as that is open."""

from __future__ import annotations

from typing import Any

import pytest

from coordinator.policy.routing import RouteStage
from coordinator.ticket_desk import TICKET_LIFE_S, SessionTerms, TicketDesk
from coordinator.waiting_room import Asker
from protocol.errors import ModelUnavailableError, UnauthenticatedError
from protocol.ids import BlockRange, KeyId, ModelName, Revision, SessionId, WorkerId
from protocol.messages import PROTOCOL_VERSION
from protocol.rest import RouteHop
from protocol.tickets import AttachTicket, Ticket, verified_claims

A, B = WorkerId("w-a"), WorkerId("w-b")
ASKER = Asker(KeyId("k-1"), "high")


def stage(worker_id: WorkerId, start: int, end: int) -> RouteStage:
    return RouteStage(
        worker_id=worker_id,
        url=f"https://{worker_id}:1",
        blocks=BlockRange(start, end),
        precision="float32",
        epoch=7,
    )


def terms(**given: Any) -> SessionTerms:
    common = {"session_id": SessionId("s"), "model": ModelName("m"), "revision": Revision("r")}
    return SessionTerms(**{"asker": ASKER, "max_positions": 9, "now_s": 100.0} | common | given)


def hops(
    desk: TicketDesk, *stages: RouteStage, speculate: bool = True, asker: Asker = ASKER, is_private: bool = False
) -> tuple[RouteHop, ...]:
    return desk.hops(stages, terms(asker=asker, speculate=speculate, is_private=is_private))


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


def test_a_worker_can_tell_keys_apart_and_nothing_else_of_them() -> None:
    """The label is one of the key, on this worker, of this coordinator's run; who knows keys' ids can't find it."""
    desk, keys = TicketDesk(), {A: b"key of a", B: b"key of b"}

    def tickets(desk: TicketDesk, asker: Asker) -> list[Ticket]:
        found = hops(desk, stage(A, 0, 2), stage(B, 2, 4), asker=asker)
        return [verified_claims(hop.ticket, Ticket, (keys[hop.worker_id],), 100.0) for hop in found]

    with desk.serving(A, keys[A]), desk.serving(B, keys[B]):
        first, again, other = (tickets(desk, Asker(KeyId(name), "low")) for name in ("k-1", "k-1", "k-2"))
    later = TicketDesk()
    with later.serving(A, keys[A]), later.serving(B, keys[B]):
        after_a_restart = tickets(later, Asker(KeyId("k-1"), "low"))
    assert [ticket.tenant for ticket in first] == [ticket.tenant for ticket in again]
    labels = {ticket.tenant for ticket in (*first, *other, *after_a_restart)}
    assert len(labels) == 6
    assert {ticket.priority for ticket in first} == {"low"}


def test_an_older_worker_gets_a_ticket_without_what_it_does_not_know() -> None:
    desk = TicketDesk()
    with desk.serving(A, b"key of a", "1.1"):
        (hop,) = hops(desk, stage(A, 0, 4))
    ticket = verified_claims(hop.ticket, Ticket, (b"key of a",), 100.0)
    assert (ticket.tenant, ticket.priority) == ("", "normal")


def test_only_the_tail_can_verify_the_attach_ticket() -> None:
    desk = TicketDesk()
    route = (stage(A, 0, 2), stage(B, 2, 4))
    with desk.serving(A, b"key of a"), desk.serving(B, b"key of b"):
        text = desk.attach_ticket(route, terms())
    ticket = verified_claims(text, AttachTicket, (b"key of b",), 100.0)
    assert (ticket.worker_id, ticket.session_id, ticket.max_positions) == (B, "s", 9)
    assert ticket.expires_at_s == 100.0 + TICKET_LIFE_S
    with pytest.raises(UnauthenticatedError):
        verified_claims(text, AttachTicket, (b"key of a",), 100.0)
    with pytest.raises(UnauthenticatedError):
        verified_claims(text, Ticket, (b"key of b",), 100.0)
    with pytest.raises(ModelUnavailableError):
        desk.attach_ticket(route, terms())


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


def test_private_sessions_are_signed_as_such_and_older_workers_are_none_for_them() -> None:
    desk, route = TicketDesk(), (stage(A, 1, 3),)
    with desk.serving(A, b"key of a"), desk.serving(B, b"key of b", "1.1"):
        assert desk.without_private() == {B}
        assert desk.without_newest_sampling() == {B}
        (hop,) = hops(desk, *route, is_private=True)
        text = desk.attach_ticket(route, terms(is_private=True))
    assert verified_claims(hop.ticket, Ticket, (b"key of a",), 100.0).is_private
    assert verified_claims(text, AttachTicket, (b"key of a",), 100.0).gives_states
