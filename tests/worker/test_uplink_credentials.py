"""Credentials that are refused, run out, or whose secret or signing key rotates while the uplink runs."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from coordinator.app import utc_now_s
from coordinator.keys import TICKET_DESK
from protocol.errors import ModelUnavailableError, UnauthenticatedError
from protocol.ids import SessionId
from protocol.tickets import AttachTicket, verified_claims
from tests.support.coordinators import join_secret_of, running_coordinator
from tests.support.linked_uplink import Linked, linked
from tests.support.waiting import eventually
from worker.enrolment import Credentials


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
