from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from benchmarks.relay import Relay
from coordinator.app import RunningCoordinator, utc_now_s
from coordinator.keys import TICKET_DESK
from coordinator.quota_rows import OPENS_WITHIN
from coordinator.repository import Repository
from coordinator.stored_rows import NewGeneration
from coordinator.tables import ReservationRow
from protocol.control_messages import Announce, Assign, EndSessions, GenerationReport, Heartbeat
from protocol.errors import ConflictError, ModelUnavailableError, RequestError, UnauthenticatedError
from protocol.ids import FileHash, KeyId, ModelName, Revision, SessionId, WorkerId
from protocol.key_limits import KeyLimits
from protocol.messages import PROTOCOL_VERSION
from protocol.tickets import AttachTicket, verified_claims
from tests.support.coordinators import (
    add_model,
    announcement,
    eventually,
    eventually_answered,
    http_session,
    join_secret_of,
    key_of,
    running_coordinator,
)
from tests.support.fleet import fleet_of
from worker.enrolment import Credentials, CredentialsHolder, enrol
from worker.error_groups import leaves
from worker.holdings import Holdings
from worker.identity import load_identity
from worker.uplink import Uplink
from worker.uplink_hooks import UplinkHooks


class Linked:
    """An uplink to a real coordinator, and what it told."""

    def __init__(self, coordinator: RunningCoordinator, tmp_path: Path, clock: Callable[[], float]) -> None:
        self.identity = load_identity(tmp_path)
        self.coordinator = coordinator
        self.urls: tuple[str, ...] = ()
        """At which to reach it, if not at its own."""
        self.clock = clock
        self.holdings = Holdings()
        self.announce: dict[str, Any] = {}
        self.drains: list[str] = []
        self.ends: list[EndSessions] = []
        self.begun: set[SessionId] = set()
        self.secret = lambda: join_secret_of(coordinator)
        self.lines: list[str] = []
        self.n_renewals = 0
        self.longest_sessions: dict[ModelName, int] = {}

    async def renew(self) -> Credentials:
        self.n_renewals += 1
        return await self.enrol()

    async def enrol(self) -> Credentials:
        urls = self.urls or (self.coordinator.url,)
        return await enrol(self.identity, urls, self.secret(), self.clock)

    async def uplink(self) -> Uplink:
        self.credentials = CredentialsHolder(await self.enrol())
        hooks = UplinkHooks(
            announce=self._announce,
            heartbeat=lambda: Heartbeat(
                n_sessions=3,
                n_queued=0,
                free_kv_bytes=7,
                decode_s_per_block=0.0,
                prefill_s_per_token_block=0.0,
                longest_sessions=self.longest_sessions,
            ),
            sessions_begun=lambda: frozenset(self.begun),
            renew=self.renew,
            on_drain=self.drains.append,
            on_end_sessions=self.ends.append,
            tell=self.lines.append,
        )
        return Uplink(credentials=self.credentials, holdings=self.holdings, hooks=hooks, clock=self.clock)

    def _announce(self) -> Announce:
        return announcement(epoch=self.holdings.epoch, spans=self.holdings.statuses, **self.announce)

    @property
    def record(self) -> Any:
        return self.coordinator.cluster.state.workers.get(self.identity.worker_id)


@asynccontextmanager
async def linked(
    coordinator: RunningCoordinator, tmp_path: Path, clock: Callable[[], float] = utc_now_s
) -> AsyncIterator[tuple[Linked, Uplink]]:
    link = Linked(coordinator, tmp_path, clock)
    uplink = await link.uplink()
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(uplink.run())
        try:
            yield link, uplink
        finally:
            running.cancel()


async def test_it_announces_beats_and_obeys(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator, linked(coordinator, tmp_path) as (link, _):
        await add_model(coordinator)
        await eventually(lambda: link.holdings.epoch > 0)
        assert link.holdings.wanted[0].model == "tiny"
        await eventually(lambda: link.record.heartbeat is not None and link.record.heartbeat.n_sessions == 3)
        assert link.record.is_connected
        assert "assigned blocks" in link.lines[-1]


async def test_it_reports_spans_and_files_as_they_change(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator, linked(coordinator, tmp_path) as (link, _):
        model = await add_model(coordinator)
        await eventually(lambda: link.holdings.epoch > 0)
        link.holdings.set_status(link.holdings.wanted[0], "ready", "", 1.0)
        files = {FileHash(name) for name in model.contents}
        link.holdings.set_files(files)
        await eventually(lambda: link.record.files == files)
        await eventually(lambda: link.record.reported and link.record.reported[0].state == "ready")


async def test_what_a_worker_has_room_for_is_told_with_what_became_ready_and_not_a_second_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In between, routes would be given out for sessions that are too long for it."""
    monkeypatch.setattr("worker.uplink.HEARTBEAT_S", 60.0)
    async with running_coordinator(tmp_path) as coordinator, linked(coordinator, tmp_path) as (link, _):
        await add_model(coordinator)
        await eventually(lambda: link.holdings.epoch > 0)
        link.longest_sessions = {ModelName("tiny"): 40}
        link.holdings.set_status(link.holdings.wanted[0], "ready", "", 1.0)
        await eventually(lambda: link.record.heartbeat and link.record.heartbeat.longest_sessions == {"tiny": 40})
        assert link.record.reported[0].state == "ready"


async def test_it_comes_back_when_the_coordinator_does_and_reports_what_waited(tmp_path: Path) -> None:
    report = GenerationReport(session_id=SessionId("s"), n_prompt_tokens=1, n_completion_tokens=2, outcome="stop")
    async with running_coordinator(tmp_path) as coordinator:
        port = coordinator.port
        link = Linked(coordinator, tmp_path, utc_now_s)
        uplink = await link.uplink()
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(uplink.run())
        await eventually(lambda: link.lines and "lost the coordinator" in link.lines[-1])
        uplink.report_generation(report)
        await uplink.flush(0.0)  # doesn't wait for who isn't there
        await uplink.leave("nobody hears it")
        async with running_coordinator(tmp_path, listen_port=port) as coordinator:
            link.coordinator = coordinator
            await asyncio.wait_for(uplink.connected.wait(), 25)
            await uplink.flush(10.0)
            assert "back with the coordinator" in link.lines
            running.cancel()


async def test_what_clients_have_opened_is_said_once_and_again_on_a_new_socket(tmp_path: Path) -> None:
    session = SessionId("s1")
    async with running_coordinator(tmp_path) as coordinator:
        port = coordinator.port
        link = Linked(coordinator, tmp_path, utc_now_s)
        uplink = await link.uplink()
        await _reserve(coordinator.repository, session, link.identity.worker_id)
        async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
            running = tasks.create_task(uplink.run())
            await uplink.connected.wait()
            link.begun.add(session)
            await eventually_answered(lambda: _is_held_for_long(coordinator.repository))
            link.begun.clear()
            await eventually_answered(lambda: _is_held_for_a_moment(coordinator.repository))
            link.begun.add(session)
            await eventually_answered(lambda: _is_held_for_long(coordinator.repository))
            running.cancel()
        await _end_soon(coordinator.repository)
    async with asyncio.timeout(40), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(uplink.run())
        async with running_coordinator(tmp_path, listen_port=port) as again:
            await eventually_answered(lambda: _is_held_for_long(again.repository))
            running.cancel()


async def test_what_a_broken_socket_swallowed_is_reported_again_and_counts_once(tmp_path: Path) -> None:
    ends = [
        GenerationReport(session_id=SessionId(name), n_prompt_tokens=1, n_completion_tokens=1, outcome="stop")
        for name in ("s1", "s2")
    ]
    async with running_coordinator(tmp_path) as coordinator, Relay("127.0.0.1", coordinator.port) as relay:
        repository, link = coordinator.repository, Linked(coordinator, tmp_path, utc_now_s)
        link.urls = (f"https://127.0.0.1:{relay.port}",)
        uplink = await link.uplink()
        await _reserve(repository, SessionId("s1"), link.identity.worker_id, max_concurrent=2)
        await repository.record_generation(_new(SessionId("s2"), link.identity.worker_id))

        async def is_over(session_id: SessionId) -> bool:
            stored = await repository.generation(session_id)
            return stored is not None and stored.finished_at is not None

        async with asyncio.timeout(40), asyncio.TaskGroup() as tasks:
            running = tasks.create_task(uplink.run())
            await uplink.connected.wait()
            uplink.report_generation(ends[0])
            await eventually_answered(lambda: is_over(SessionId("s1")))
            relay.hold()
            uplink.report_generation(ends[1])
            await uplink.flush(10.0)  # it is sent, and nobody has it
            relay.cut()
            relay.release()
            await eventually_answered(lambda: is_over(SessionId("s2")), deadline_s=30.0)
            running.cancel()
        today = datetime.now(UTC).date()
        days = await repository.usage.usage(today - timedelta(days=1), today)
        assert [sum(day.n_generations for day in days), sum(day.n_completion_tokens for day in days)] == [2, 2]


async def _reserve(repository: Repository, session_id: SessionId, head: WorkerId, max_concurrent: int = 1) -> None:
    now, limits = datetime.fromtimestamp(utc_now_s(), UTC), KeyLimits(max_concurrent=max_concurrent)
    await repository.add_api_key(KeyId("k"), "n", "client", "h", now, limits=limits)
    await repository.record_generation(_new(session_id, head))


def _new(session_id: SessionId, head: WorkerId) -> NewGeneration:
    return NewGeneration(
        session_id=session_id,
        key_id=KeyId("k"),
        model=ModelName("m"),
        revision=Revision("r"),
        route=((head, 0, 4),),
        n_prompt_tokens=1,
        max_tokens=1,
        at=datetime.fromtimestamp(utc_now_s(), UTC),
        is_opening_told=True,
    )


async def _is_held_for_long(repository: Repository) -> bool:
    async with repository.transactions.reading() as session:
        until = await session.scalar(select(ReservationRow.expires_at))
        return until is not None and until.timestamp() > utc_now_s() + 2 * OPENS_WITHIN.total_seconds()


async def _is_held_for_a_moment(repository: Repository) -> bool:
    return not await _is_held_for_long(repository)


async def _end_soon(repository: Repository) -> None:
    async with repository.transactions.writing() as session:
        await session.execute(update(ReservationRow).values(expires_at=datetime.fromtimestamp(utc_now_s(), UTC)))


async def test_it_says_that_it_leaves(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator, linked(coordinator, tmp_path) as (link, uplink):
        await uplink.connected.wait()
        await eventually(lambda: link.record is not None and link.record.is_connected)
        await uplink.leave("test is over")
        await eventually(lambda: link.record.has_said_leaving)


@pytest.mark.parametrize(("version", "is_awaited"), [("1.1", False), (PROTOCOL_VERSION, True)])
async def test_it_serves_on_if_the_coordinator_will_say_until_when(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, is_awaited: bool
) -> None:
    monkeypatch.setattr("coordinator.worker_api.PROTOCOL_VERSION", version)
    async with running_coordinator(tmp_path) as coordinator, linked(coordinator, tmp_path) as (link, uplink):
        await uplink.connected.wait()
        await eventually(lambda: link.record is not None and link.record.is_connected)
        assert await uplink.leave("stopped", 10.0) is is_awaited
        await eventually(lambda: link.record.is_draining)
        await eventually(lambda: link.drains == (["stopped"] if is_awaited else []))


async def test_the_operator_s_drain_reaches_the_worker(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator, linked(coordinator, tmp_path) as (link, _):
        await eventually(lambda: link.record is not None and link.record.is_connected)
        async with http_session(coordinator, key_of(coordinator, "admin")) as http:
            answer = await http.ask("POST", f"/admin/v1/workers/{link.identity.worker_id}/drain")
            assert answer.status == 200, answer.body
        await eventually(lambda: link.drains)


async def test_a_second_worker_with_the_identity_ends_the_first(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator:
        one, other = Linked(coordinator, tmp_path, utc_now_s), Linked(coordinator, tmp_path, utc_now_s)
        first, second = await one.uplink(), await other.uplink()

        async def replace_the_first() -> None:
            await first.connected.wait()
            await second.run()

        with pytest.raises(BaseExceptionGroup) as caught:
            await _both(first.run(), replace_the_first())
        assert caught.value.split(ConflictError)[0] is not None


async def _both(*work: Coroutine[Any, Any, None]) -> None:
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        for coroutine in work:
            tasks.create_task(coroutine)


async def test_an_announcement_that_is_refused_ends_it(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator:
        link = Linked(coordinator, tmp_path, utc_now_s)
        link.announce = {"url": "https://169.254.169.254:80"}
        uplink = await link.uplink()
        with pytest.raises(BaseExceptionGroup) as caught:
            await _both(uplink.run())
        refused = caught.value.split(RequestError)[0]
        assert refused is not None
        assert "--advertise" in str(leaves(refused)[0])


async def test_refused_credentials_are_renewed(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator:
        link = Linked(coordinator, tmp_path, utc_now_s)
        uplink = await link.uplink()
        current = link.credentials.current
        link.credentials.replace(
            Credentials(
                **{name: getattr(current, name) for name in current.__slots__} | {"session_token": "no.good"}  # type: ignore[arg-type]
            )
        )
        async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
            running = tasks.create_task(uplink.run())
            await uplink.connected.wait()
            running.cancel()
        assert link.n_renewals == 1


async def test_a_worker_whose_secret_was_rotated_says_so_and_comes_back_with_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.renewal.REFUSED_S", 0.2)
    async with running_coordinator(tmp_path) as coordinator:
        link = Linked(coordinator, tmp_path, utc_now_s)
        secrets = [join_secret_of(coordinator)]
        link.secret = lambda: secrets[-1]
        uplink = await link.uplink()
        values = {name: getattr(link.credentials.current, name) for name in Credentials.__slots__}
        link.credentials.replace(Credentials(**values | {"session_token": "no.good"}))  # type: ignore[arg-type]
        now = datetime.now(UTC)
        await asyncio.to_thread(coordinator.authority.secrets.rotate_join_secret, now, timedelta(0))
        async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
            running = tasks.create_task(uplink.run())
            await eventually(lambda: link.n_renewals >= 3)
            (line,) = link.lines
            assert "not let in any more" in line
            assert "--secret-file" in line
            secrets.append(join_secret_of(coordinator))
            await uplink.connected.wait()
            running.cancel()


async def test_credentials_are_renewed_at_half_of_their_life(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator:
        link = Linked(coordinator, tmp_path, utc_now_s)
        uplink = await link.uplink()
        current = link.credentials.current
        due = {name: getattr(current, name) for name in current.__slots__} | {"renew_at_s": utc_now_s()}
        link.credentials.replace(Credentials(**due))  # type: ignore[arg-type]
        async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
            running = tasks.create_task(uplink.run())
            await eventually(lambda: link.credentials.current.renew_at_s > utc_now_s() + 60)
            running.cancel()
        assert link.n_renewals == 1


async def test_credentials_that_are_refused_and_due_at_once_are_renewed_once(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator:
        link = Linked(coordinator, tmp_path, utc_now_s)
        uplink = await link.uplink()
        current = link.credentials.current
        due = {"renew_at_s": utc_now_s(), "session_token": "no.good"}
        values = {name: getattr(current, name) for name in current.__slots__}
        link.credentials.replace(Credentials(**values | due))  # type: ignore[arg-type]
        async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
            running = tasks.create_task(uplink.run())
            await uplink.connected.wait()
            await eventually(lambda: link.credentials.current.renew_at_s > utc_now_s() + 60)
            running.cancel()
        assert link.n_renewals == 1


async def test_two_renewals_are_never_under_way_together(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator:
        link = Linked(coordinator, tmp_path, utc_now_s)
        uplink = await link.uplink()
        stale = link.credentials.current
        async with asyncio.timeout(20):
            await asyncio.gather(uplink.renewal.renew(stale), uplink.renewal.renew(stale))
        assert link.n_renewals == 1
        assert link.credentials.current is not stale


async def test_it_comes_back_at_another_address_of_the_coordinator(tmp_path: Path) -> None:
    async with (
        running_coordinator(tmp_path) as coordinator,
        Relay("127.0.0.1", coordinator.port) as one,
        Relay("127.0.0.1", coordinator.port) as other,
    ):
        urls = [f"https://127.0.0.1:{relay.port}" for relay in (one, other)]
        async with fleet_of(3, tmp_path / "state", urls) as fleet:
            for gone, there in ((one, other), (other, one)):
                assert (gone.n_connections, there.n_connections) == (3, 0)
                there.is_refusing, gone.is_refusing = False, True
                gone.cut()
                await fleet.none_connected(10.0)
                await fleet.all_connected(10.0)
            assert fleet.n_enrolments == 0


async def test_an_old_assignment_is_replaced_when_it_is_announced(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator:
        link = Linked(coordinator, tmp_path, utc_now_s)
        uplink = await link.uplink()
        async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
            running = tasks.create_task(uplink.run())
            await eventually(lambda: link.record is not None and link.record.is_connected)
            await add_model(coordinator)
            await eventually(lambda: link.holdings.epoch > 0)
            wanted, epoch = link.holdings.wanted, link.holdings.epoch
            running.cancel()
        link.holdings = Holdings()  # as a worker that was restored from an older copy of its machine
        link.holdings.assign(Assign(epoch=epoch - 1, spans=(), reason="long ago"))
        uplink = await link.uplink()
        async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
            running = tasks.create_task(uplink.run())
            await eventually(lambda: link.holdings.epoch >= epoch)
            assert link.holdings.wanted == wanted
            running.cancel()


async def test_its_tickets_are_made_with_the_key_that_it_has_however_often_signing_keys_rotate(
    tmp_path: Path,
) -> None:
    async with running_coordinator(tmp_path) as coordinator, linked(coordinator, tmp_path) as (link, uplink):
        await uplink.connected.wait()
        desk = coordinator.application[TICKET_DESK]
        ticket = AttachTicket(
            expires_at_s=2 * utc_now_s(),
            worker_id=link.identity.worker_id,
            session_id=SessionId("s"),
            max_positions=1,
        )

        def verifies() -> bool:
            try:
                text, key = desk.signed(ticket), link.credentials.current.ticket_key
                return verified_claims(text, AttachTicket, (key,), utc_now_s()) == ticket
            except (ModelUnavailableError, UnauthenticatedError):
                return False

        for _ in range(2):
            old = link.credentials.current
            await asyncio.to_thread(coordinator.authority.secrets.rotate_signing_key, datetime.now(UTC))
            await uplink.renewal.renew(old)
            assert link.credentials.current.ticket_key != old.ticket_key
            await eventually(verifies)
