"""Class 17. Defences: a session is reached over its own connections only, in order, with tickets for it alone."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from msgspec import structs
from structlog.testing import capture_logs

from protocol.control_messages import GenerationReport
from protocol.ids import SessionId
from protocol.key_rest import CreatedKey, CreateKeyRequest
from protocol.messages import AttachTail, CloseSession, FeedToken, SessionEnded, SessionOpened, Token
from protocol.rest import HopFailure, RouteGrant, RouteRequest
from tests.coordinator.test_client_api import pinned_workers
from tests.support.coordinators import http_session, key_of, running_coordinator
from tests.support.ring import Ring, Wire, running_ring
from tests.support.ring_generation import Generation, ids_payload, prompt_step
from tests.support.scripted_worker import joined_worker
from tests.support.stored_model import add_model
from tests.support.tiny_checkpoint import TinyCheckpoint
from tests.support.waiting import eventually_answered

Checkpoints = Callable[[str], TinyCheckpoint]
PROMPT = [5, 9, 30, 4]
THEIRS = SessionId("theirs")


@pytest.fixture
async def ring(checkpoint: Checkpoints, tmp_path: Path) -> AsyncIterator[Ring]:
    async with running_ring(checkpoint("llama"), tmp_path, (2,)) as running:
        yield running
        await running.until_clean()


async def refused(wire: Wire) -> str:
    ended: SessionEnded = await wire.receive((SessionEnded, SessionOpened, Token))
    assert isinstance(ended, SessionEnded), ended
    return ended.error.code


async def test_nobody_else_feeds_steps_cancels_or_reads_a_session(
    checkpoint: Checkpoints, ring: Ring, tmp_path: Path
) -> None:
    """Fails if a session's id is enough. The attacker has an own session on the same workers, and knows the id."""
    victim = await Generation.prepared(ring, PROMPT, 12, session_id=THEIRS)
    await victim.open()
    await victim.head.receive(SessionOpened)
    mine = await Generation.prepared(ring, PROMPT, 12, session_id="mine")
    await mine.open()
    await mine.head.receive(SessionOpened)
    insider = await ring.connect(ring.workers[0], as_worker=ring.authority.worker(tmp_path))
    for wire in (mine.head, insider):
        await wire.send(CloseSession(session_id=THEIRS, reason="cancelled"))
        await wire.send(CloseSession(session_id=THEIRS, reason="failed"))
        await wire.send(prompt_step(THEIRS, PROMPT), ids_payload(PROMPT))
        assert await refused(wire) == "not_found"
        await wire.send(FeedToken(session_id=THEIRS, position=len(PROMPT), token_id=7))
        assert await refused(wire) == "not_found"
    for ticket in (mine.attach_ticket, *mine.tickets, *victim.tickets):
        attach = AttachTail(session_id=THEIRS, ticket=ticket, sampling=mine.sampling)
        await mine.tail.send(attach, ids_payload(PROMPT))
        assert await refused(mine.tail) == "unauthenticated"
    await mine.cancel(mine.head)
    await victim.attach()
    await victim.step()
    assert await victim.ids() == checkpoint("llama").greedy(PROMPT, 12)


@pytest.mark.parametrize(("position", "code"), [(0, "stale_epoch"), (2, "stale_epoch"), (9, "stale_epoch")])
async def test_steps_that_are_repeated_early_or_late_end_the_session(ring: Ring, position: int, code: str) -> None:
    """Fails if a step is run wherever it says that it belongs: it would write over another's cache."""
    generation = await Generation.prepared(ring, PROMPT, 12)
    await generation.open()
    await generation.head.receive(SessionOpened)
    await generation.step()
    await generation.head.send(prompt_step(generation.session_id, [5], position), ids_payload([5]))
    assert await refused(generation.head) == code


async def test_tokens_out_of_turn_end_the_session_alone(ring: Ring, tmp_path: Path) -> None:
    """Fails if a head believes a position because the tail says it."""
    other = await Generation.prepared(ring, PROMPT, 6)
    generation = await Generation.prepared(ring, PROMPT, 12)
    await generation.open()
    await generation.head.receive(SessionOpened)
    tail = await ring.connect(ring.workers[0], as_worker=ring.workers[1].files)
    await tail.send(FeedToken(session_id=SessionId(generation.session_id), position=40, token_id=7))
    assert await refused(generation.head) in ("stale_epoch", "protocol_error")
    await other.begin()
    assert len(await other.ids()) == 6


async def test_another_keys_session_is_as_one_that_isnt_there(tmp_path: Path) -> None:
    """Fails if a session can be continued, blamed on somebody, or told from none, by another key."""
    async with running_coordinator(tmp_path) as coordinator:
        await add_model(coordinator)
        async with (
            pinned_workers(coordinator, (0, 4)),
            http_session(coordinator, key_of(coordinator, "admin")) as admin,
        ):
            keys = [
                (await admin.ask("POST", "/admin/v1/keys", CreateKeyRequest(name=name))).read(CreatedKey).key
                for name in ("victim", "attacker")
            ]
            wanted = RouteRequest(model="tiny", n_prompt_tokens=3, max_tokens=5)
            async with http_session(coordinator, keys[0]) as http:
                theirs = (await http.ask("POST", "/v1/routes", wanted)).read(RouteGrant)
            answers = []
            async with http_session(coordinator, keys[1]) as http:
                for session_id in (theirs.session_id, SessionId("0" * 32)):
                    blame = HopFailure(code="hop_lost", worker_id=theirs.hops[0].worker_id)
                    going_on = {"continues": session_id, "failure": blame}
                    asked = RouteRequest(model="tiny", n_prompt_tokens=3, max_tokens=5, **going_on)
                    answers.append(await http.ask("POST", "/v1/routes", asked))
            assert [answer.status for answer in answers] == [404, 404]
            assert answers[0].body == answers[1].body


async def test_another_keys_session_cant_be_named_as_the_one_that_failed(tmp_path: Path) -> None:
    """Fails if whoever continues a session of its own can end another's by the way, and blame it on somebody."""
    async with running_coordinator(tmp_path) as coordinator:
        await add_model(coordinator)
        async with (
            pinned_workers(coordinator, (0, 4)),
            http_session(coordinator, key_of(coordinator, "admin")) as admin,
        ):
            made = (await admin.ask("POST", "/admin/v1/keys", CreateKeyRequest(name="victim"))).read(CreatedKey)
            wanted = RouteRequest(model="tiny", n_prompt_tokens=3, max_tokens=5)
            async with http_session(coordinator, made.key) as http:
                theirs = (await http.ask("POST", "/v1/routes", wanted)).read(RouteGrant)
            with capture_logs() as logs:
                async with http_session(coordinator, key_of(coordinator, "client")) as http:
                    own = (await http.ask("POST", "/v1/routes", wanted)).read(RouteGrant)
                    blame = HopFailure(
                        code="hop_lost", worker_id=theirs.hops[0].worker_id, session_id=theirs.session_id
                    )
                    going_on = structs.replace(wanted, continues=own.session_id, failure=blame)
                    assert (await http.ask("POST", "/v1/routes", going_on)).status == 200
            assert not [line for line in logs if line["event"] == "session_failed"]
            ended = [line["n_sessions"] for line in logs if line["event"] == "sessions_ended"]
            assert ended == [1], "its own"


async def test_only_the_tail_of_its_route_ends_a_generation(tmp_path: Path) -> None:
    """Fails if any worker's report settles any session: it could use up another's quota, or give it back."""
    async with running_coordinator(tmp_path) as coordinator:
        await add_model(coordinator)
        async with (
            pinned_workers(coordinator, (0, 4)) as (tail,),
            joined_worker(coordinator, port=7990) as stranger,
            http_session(coordinator, key_of(coordinator, "client")) as http,
        ):
            wanted = RouteRequest(model="tiny", n_prompt_tokens=3, max_tokens=5, exclude=(stranger.worker_id,))
            grants = [(await http.ask("POST", "/v1/routes", wanted)).read(RouteGrant) for _ in range(2)]

            def report(index: int) -> GenerationReport:
                session_id = grants[index].session_id
                return GenerationReport(
                    session_id=session_id, n_prompt_tokens=3, n_completion_tokens=4, outcome="stop"
                )

            await stranger.send(report(0))
            await stranger.beat()
            await tail.send(report(1))

            async def is_over() -> bool:
                generation = await coordinator.repository.generation(grants[1].session_id)
                return generation is not None and generation.outcome is not None

            await eventually_answered(is_over)
            untouched = await coordinator.repository.generation(grants[0].session_id)
            assert untouched is not None
            assert untouched.outcome is None
