from __future__ import annotations

from typing import Any

import pytest

from protocol.control_messages import EndSessions
from protocol.errors import (
    BrigadeError,
    ClockSkewError,
    ContextExceededError,
    ForbiddenError,
    HopLostError,
    InvalidRequestError,
    StaleEpochError,
    UnauthenticatedError,
)
from protocol.ids import BlockRange, ModelName, Revision, SessionId, WorkerId
from protocol.messages import AttachTail, OpenSession, SamplingParams
from protocol.tickets import AttachTicket, SessionToken, Ticket, sign_claims
from worker.holdings import Holdings
from worker.opening import Doorkeeper, banned_beside, is_to_end, n_tokens_allowed, span_to_use

ME, BEFORE, AFTER = WorkerId("w-me"), WorkerId("w-before"), WorkerId("w-after")
KEY = b"k" * 32
DOOR = Doorkeeper(worker_id=ME, ticket_keys=(b"o" * 32, KEY), now_s=1000.0)
GREEDY = SamplingParams(max_tokens=5)


def signed(key: bytes = KEY, **changes: Any) -> str:
    values: dict[str, Any] = {
        "expires_at_s": 1060.0,
        "worker_id": ME,
        "session_id": SessionId("s"),
        "model": ModelName("m"),
        "revision": Revision("r"),
        "blocks": BlockRange(0, 2),
        "epoch": 1,
        "previous": BEFORE,
        "next": None,
        "next_url": None,
        "head": BEFORE,
        "head_url": "https://x",
        "tail": ME,
        "max_positions": 10,
    }
    return sign_claims(Ticket(**{**values, **changes}), [key])


def opening(*tickets: str, session_id: str = "s", deadline_s: float = 5.0, n_prompt: int = 0) -> OpenSession:
    return OpenSession(session_id=SessionId(session_id), tickets=tickets, deadline_s=deadline_s, n_prompt=n_prompt)


def test_the_right_ticket_opens() -> None:
    assert DOOR.ticket_to_open(opening(signed()), BEFORE).blocks == BlockRange(0, 2)
    assert DOOR.ticket_to_open(opening(signed(), n_prompt=10), BEFORE).blocks == BlockRange(0, 2)


def test_a_ticket_of_the_previous_key_opens_too() -> None:
    assert DOOR.ticket_to_open(opening(signed(b"o" * 32)), BEFORE).worker_id == ME


@pytest.mark.parametrize(
    ("message", "peer", "error"),
    [
        (opening(signed(expires_at_s=999.0)), BEFORE, ClockSkewError),
        (opening(signed(expires_at_s=float("inf"))), BEFORE, UnauthenticatedError),
        (opening(signed(b"x" * 32)), BEFORE, UnauthenticatedError),
        (opening(signed(worker_id=AFTER)), BEFORE, UnauthenticatedError),
        (opening(signed(), session_id="t"), BEFORE, UnauthenticatedError),
        (opening(signed(session_id=SessionId("s" * 200)), session_id="s" * 200), BEFORE, UnauthenticatedError),
        (opening("nonsense"), BEFORE, UnauthenticatedError),
        (opening(signed()), None, ForbiddenError),
        (opening(signed()), AFTER, ForbiddenError),
        (opening(signed(previous=None)), BEFORE, ForbiddenError),
        (opening(signed(), signed()), BEFORE, InvalidRequestError),
        (opening(signed(next=AFTER)), BEFORE, InvalidRequestError),
        (opening(), BEFORE, InvalidRequestError),
        (opening(*["x"] * 300), BEFORE, InvalidRequestError),
        (opening(signed(), deadline_s=0.0), BEFORE, InvalidRequestError),
        (opening(signed(), n_prompt=-1), BEFORE, InvalidRequestError),
        (opening(signed(), n_prompt=11), BEFORE, InvalidRequestError),
        (opening(signed(), deadline_s=float("nan")), BEFORE, InvalidRequestError),
    ],
)
def test_wrong_tickets_and_callers_are_refused(
    message: OpenSession, peer: WorkerId | None, error: type[BrigadeError]
) -> None:
    with pytest.raises(error):
        DOOR.ticket_to_open(message, peer)


def test_a_workers_session_token_is_no_ticket() -> None:
    token = sign_claims(SessionToken(expires_at_s=1060.0, worker_id=ME), [KEY])
    with pytest.raises(UnauthenticatedError):
        DOOR.ticket_to_open(opening(token), BEFORE)


def signed_to_attach(key: bytes = KEY, **changes: Any) -> str:
    values: dict[str, Any] = {"expires_at_s": 1060.0, "worker_id": ME, "session_id": "s", "max_positions": 10}
    return sign_claims(AttachTicket(**{**values, **changes}), [key])


def attaching(ticket: str, session_id: str = "s") -> AttachTail:
    return AttachTail(session_id=SessionId(session_id), ticket=ticket, sampling=GREEDY)


@pytest.mark.parametrize("key", [KEY, b"o" * 32])
def test_the_right_ticket_attaches(key: bytes) -> None:
    assert DOOR.ticket_to_attach(attaching(signed_to_attach(key))).max_positions == 10


@pytest.mark.parametrize(
    "message",
    [
        attaching(signed_to_attach(worker_id=AFTER)),
        attaching(signed_to_attach(), session_id="t"),
        attaching(signed_to_attach(session_id="s" * 200), session_id="s" * 200),
        attaching(signed_to_attach(expires_at_s=float("inf"))),
        attaching(signed_to_attach(b"x" * 32)),
        attaching(signed()),
        attaching(signed(next=AFTER)),
        attaching(sign_claims(SessionToken(expires_at_s=1060.0, worker_id=ME), [KEY])),
        attaching("nonsense"),
    ],
)
def test_nothing_else_attaches_the_tails_route_ticket_neither(message: AttachTail) -> None:
    with pytest.raises(UnauthenticatedError):
        DOOR.ticket_to_attach(message)


def test_an_expired_ticket_doesnt_attach_and_it_is_said_that_a_clock_may_be_wrong() -> None:
    with pytest.raises(ClockSkewError, match=r"expired 3600 s ago by the clock of worker w-me.*\(NTP\)"):
        DOOR.ticket_to_attach(attaching(signed_to_attach(expires_at_s=DOOR.now_s - 3600.0)))


def test_an_attach_ticket_doesnt_open() -> None:
    with pytest.raises(UnauthenticatedError):
        DOOR.ticket_to_open(opening(signed_to_attach()), BEFORE)


def test_blocks_that_arent_loaded_are_stale() -> None:
    with pytest.raises(StaleEpochError, match="epoch 0"):
        span_to_use(Holdings(), ModelName("m"), Revision("r"), BlockRange(0, 2))


def test_the_answer_ends_with_the_tickets_budget() -> None:
    assert n_tokens_allowed(GREEDY, 3, 100) == 5
    assert n_tokens_allowed(GREEDY, 97, 100) == 3
    with pytest.raises(ContextExceededError):
        n_tokens_allowed(GREEDY, 100, 100)
    with pytest.raises(InvalidRequestError):
        n_tokens_allowed(GREEDY, 0, 100)


def test_the_coordinator_ends_sessions_by_name_and_those_beside_a_banned_worker() -> None:
    ticket = DOOR.ticket_to_open(opening(signed()), BEFORE)
    error = HopLostError("x").body()
    assert is_to_end(ticket, EndSessions(session_ids=(SessionId("s"),), error=error))
    assert not is_to_end(ticket, EndSessions(session_ids=(SessionId("t"),), neighbours=(ME, AFTER), error=error))
    beside = EndSessions(neighbours=(AFTER, BEFORE), error=error)
    assert is_to_end(ticket, beside)
    assert banned_beside(ticket, beside) == BEFORE
