"""Class 19. Defence: `Doorkeeper`: a certificate alone opens nothing; a ticket is for one caller and session."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from protocol.ids import BlockRange, SessionId
from protocol.messages import FeedToken, OpenSession, SessionEnded, SessionOpened
from protocol.tickets import sign_claims
from tests.support.pki import TestAuthority, WorkerFiles
from tests.support.ring import Ring, Wire, running_ring
from tests.support.ring_generation import Generation, ids_payload, prompt_step
from tests.support.tiny_checkpoint import TinyCheckpoint

Checkpoints = Callable[[str], TinyCheckpoint]
SESSION = SessionId("s")
PROMPT = [1, 2, 3]


@pytest.fixture
async def ring(checkpoint: Checkpoints, tmp_path: Path) -> AsyncIterator[Ring]:
    async with running_ring(checkpoint("llama"), tmp_path, (2,)) as running:
        yield running
        await running.until_clean()


@pytest.fixture
def insider(ring: Ring, tmp_path: Path) -> WorkerFiles:
    """A worker of the cluster that nobody sent."""
    return ring.authority.worker(tmp_path)


async def refusal(wire: Wire, *tickets: str) -> str:
    await wire.send(OpenSession(session_id=SESSION, tickets=tickets, deadline_s=30.0))
    ended: SessionEnded = await wire.receive((SessionEnded, SessionOpened))
    assert isinstance(ended, SessionEnded), "it was let in"
    return ended.error.code


async def test_a_worker_with_its_own_ticket_is_let_in(ring: Ring, insider: WorkerFiles) -> None:
    """The counterpart of all that follows."""
    wire = await ring.connect(ring.workers[1], as_worker=insider)
    text = sign_claims(ring.ticket(SESSION, 1, previous=insider.worker_id), [ring.workers[1].ticket_key])
    await wire.send(OpenSession(session_id=SESSION, tickets=(text,), deadline_s=30.0))
    await wire.receive(SessionOpened)
    await wire.socket.close()


async def test_without_a_ticket(ring: Ring, insider: WorkerFiles) -> None:
    """Fails if a certificate of the cluster is enough."""
    wire = await ring.connect(ring.workers[1], as_worker=insider)
    assert await refusal(wire) == "invalid_request"
    assert await refusal(wire, "") == "unauthenticated"
    await wire.send(prompt_step(SESSION, PROMPT), bytes(12))
    assert (await wire.receive(SessionEnded)).error.code == "not_found"
    await wire.send(FeedToken(session_id=SESSION, position=3, token_id=1))
    assert (await wire.receive(SessionEnded)).error.code == "not_found"


async def test_with_anothers_ticket(ring: Ring, insider: WorkerFiles) -> None:
    """Fails if `previous` isn't compared with the certificate: these tickets are genuine."""
    head, tail = ring.tickets(SESSION)
    wire = await ring.connect(ring.workers[1], as_worker=insider)
    assert await refusal(wire, tail) == "forbidden"
    assert await refusal(await ring.connect(ring.workers[0], as_worker=insider), head, tail) == "forbidden"
    assert await refusal(await ring.connect(ring.workers[1]), tail) == "forbidden"  # a client


async def test_with_a_ticket_for_another_worker(ring: Ring, insider: WorkerFiles) -> None:
    """Fails if the ticket's worker isn't compared, or all workers have one key."""
    wire = await ring.connect(ring.workers[1], as_worker=insider)
    for key in (worker.ticket_key for worker in ring.workers):
        ticket = ring.ticket(SESSION, 0, previous=insider.worker_id, next=None)
        assert await refusal(wire, sign_claims(ticket, [key])) == "unauthenticated"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"blocks": BlockRange(1, 4)}, "stale_epoch"),
        ({"blocks": BlockRange(2, 5)}, "stale_epoch"),
        ({"blocks": BlockRange(0, 2)}, "stale_epoch"),
        ({"max_positions": 10**9}, "overloaded"),
    ],
)
async def test_with_a_ticket_for_more_than_is_here(
    ring: Ring, insider: WorkerFiles, changes: dict[str, Any], code: str
) -> None:
    """Fails if session, range or budget isn't checked: the signature and the caller are right."""
    wire = await ring.connect(ring.workers[1], as_worker=insider)
    ticket = ring.ticket(SESSION, 1, **{"previous": insider.worker_id, **changes})
    assert await refusal(wire, sign_claims(ticket, [ring.workers[1].ticket_key])) == code


async def test_with_an_expired_ticket(ring: Ring, insider: WorkerFiles) -> None:
    """Fails if expiry isn't checked: all else is right. It is said that a clock may be wrong."""
    wire = await ring.connect(ring.workers[1], as_worker=insider)
    ticket = ring.ticket(SESSION, 1, previous=insider.worker_id, expires_at_s=1.0)
    assert await refusal(wire, sign_claims(ticket, [ring.workers[1].ticket_key])) == "clock_skew"


async def test_with_its_own_ticket_of_another_session(ring: Ring, insider: WorkerFiles) -> None:
    """Fails if the ticket's session isn't compared with the one that is opened."""
    wire = await ring.connect(ring.workers[1], as_worker=insider)
    ticket = ring.ticket("another", 1, previous=insider.worker_id)
    assert await refusal(wire, sign_claims(ticket, [ring.workers[1].ticket_key])) == "unauthenticated"


async def test_with_a_ticket_that_it_widened_itself(ring: Ring, insider: WorkerFiles) -> None:
    """Fails if a ticket's signature doesn't cover what it says."""
    wire = await ring.connect(ring.workers[1], as_worker=insider)
    narrow = ring.ticket(SESSION, 1, previous=insider.worker_id, max_positions=10)
    wide = ring.ticket(SESSION, 1, previous=insider.worker_id, max_positions=50)
    good = sign_claims(narrow, [ring.workers[1].ticket_key])
    forged = sign_claims(wide, [b"guess" * 8]).rsplit(".", 1)[0] + "." + good.rsplit(".", 1)[1]
    assert await refusal(wire, forged) == "unauthenticated"


async def test_a_worker_of_another_cluster_is_no_worker(ring: Ring, tmp_path: Path) -> None:
    """Fails if certificates of other authorities are taken."""
    stranger = TestAuthority().worker(tmp_path)
    text = sign_claims(ring.ticket(SESSION, 1, previous=stranger.worker_id), [ring.workers[1].ticket_key])
    with pytest.raises((aiohttp.ClientError, OSError, TypeError)):  # TLS ends it, sooner or later
        await refusal(await ring.connect(ring.workers[1], as_worker=stranger), text)
    assert ring.workers[1].plane.n_sessions == 0


async def test_a_worker_cannot_feed_anothers_session(ring: Ring, insider: WorkerFiles) -> None:
    """Fails if any worker's tokens are taken instead of the ticket's tail's."""
    generation = await Generation.prepared(ring, PROMPT, session_id=SESSION)
    await generation.open()
    await generation.head.receive(SessionOpened)
    wire = await ring.connect(ring.workers[0], as_worker=insider)
    await wire.send(FeedToken(session_id=SESSION, position=len(PROMPT), token_id=7))
    assert (await wire.receive(SessionEnded)).error.code == "not_found"
    await generation.attach()
    await generation.step()
    assert len(await generation.tokens()) == 8


async def test_a_worker_cannot_step_in_anothers_session(ring: Ring, insider: WorkerFiles) -> None:
    """Fails if steps are taken from any worker's connection instead of the one that opened the session."""
    generation = await Generation.prepared(ring, PROMPT, session_id=SESSION)
    await generation.open()
    await generation.head.receive(SessionOpened)
    for worker in ring.workers:
        wire = await ring.connect(worker, as_worker=insider)
        await wire.send(prompt_step(SESSION, PROMPT), ids_payload(PROMPT))
        assert (await wire.receive(SessionEnded)).error.code == "not_found"
    await generation.attach()
    await generation.step()
    assert len(await generation.tokens()) == 8


async def test_a_banned_workers_certificate_lasts_no_longer_than_its_tickets(
    ring: Ring, insider: WorkerFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its certificate is good for months: but only tickets open anything, for an hour at most, and what one opens
    ends with it, whatever deadline is asked for. Fails if a session may outlive its ticket."""
    wire = await ring.connect(ring.workers[1], as_worker=insider)
    now_s = time.time()  # noqa: TID251 - the worker's clock is the real one
    # but it stands still until the session is open: a busy machine takes longer than the ticket lasts
    monkeypatch.setattr(ring.workers[1].plane._sessions, "_clock", lambda: now_s)
    ticket = ring.ticket(SESSION, 1, previous=insider.worker_id, expires_at_s=now_s + 0.3)
    text = sign_claims(ticket, [ring.workers[1].ticket_key])
    await wire.send(OpenSession(session_id=SESSION, tickets=(text,), deadline_s=3600.0))
    await wire.receive(SessionOpened)
    monkeypatch.undo()
    assert (await wire.receive(SessionEnded)).error.code == "deadline_exceeded"
    assert await refusal(await ring.connect(ring.workers[1], as_worker=insider), text) == "clock_skew"


async def test_whoever_answers_at_a_workers_address_must_be_that_worker(ring: Ring, insider: WorkerFiles) -> None:
    """Fails if a next hop is believed for being any worker of the cluster: the head dials the id of one at the
    address of another."""
    head, tail = ring.workers
    ticket = ring.ticket(SESSION, 0, next=insider.worker_id, next_url=tail.url)
    text = sign_claims(ticket, [head.ticket_key])
    wire = await ring.connect(head)
    await wire.send(OpenSession(session_id=SESSION, tickets=(text, "for the next"), deadline_s=30.0))
    assert (await wire.receive(SessionEnded)).error.code == "hop_lost"
