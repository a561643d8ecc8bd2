from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from coordinator.app import utc_now_s
from protocol.checks import Check
from protocol.errors import ConfigError
from protocol.ids import CoordinatorId
from protocol.invite_rest import CreatedInvite, CreateInviteRequest, InviteList
from protocol.invites import invite_from_text
from protocol.rest import Hello
from tests.support.announced import announced
from tests.support.coordinators import http_session, join_secret_of, key_of, running_coordinator
from tests.support.strangers import saying_hello
from tests.support.waiting import eventually_answered
from worker.doctor_network import Doorway, announced_urls, coordinator_checks, doorway_checks

SECRET = secrets.token_urlsafe(32)
HERE = ("https://127.0.0.1:7400",)


async def looked_at(
    url: str, secret: Callable[[], str] = lambda: SECRET, clock: Callable[[], float] = utc_now_s
) -> dict[str, Check]:
    return {check.name.split()[0]: check for check in await coordinator_checks(url, secret, clock)}


def hello(version: str = "1.0", time_s: float | None = None) -> Hello:
    return Hello(
        protocol_version=version,
        coordinator_id=CoordinatorId("c-1"),
        time_s=utc_now_s() if time_s is None else time_s,
    )


async def test_a_coordinator_that_is_well_and_knows_the_secret(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator:
        secret = join_secret_of(coordinator)
        checks = await looked_at(coordinator.url, lambda: secret)
        assert list(checks) == ["address", "connection", "TLS", "version", "clock", "secret"]
        assert {check.status for check in checks.values()} == {"ok"}
        assert coordinator.cluster.state.workers == {}
        assert not any(secret in check.seen + check.mend for check in checks.values())


async def test_a_wrong_secret_fails(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator:
        checks = await looked_at(coordinator.url)
        assert checks["secret"].status == "fail"
        assert "refuses this worker's join secret" in checks["secret"].seen
        assert "--secret-file" in checks["secret"].mend
        assert checks["clock"].status == "ok"


async def test_no_secret_at_all_fails_alone(tmp_path: Path) -> None:
    def none() -> str:
        raise ConfigError("no join secret: set BRIGADE_SECRET")

    async with running_coordinator(tmp_path) as coordinator:
        checks = await looked_at(coordinator.url, none)
        assert [name for name, check in checks.items() if check.status == "fail"] == ["secret"]


async def test_nobody_there() -> None:
    checks = await looked_at("https://127.0.0.1:1")
    assert checks["address"].status == "ok"
    assert checks["connection"].status == "fail"
    assert "Connection refused" in checks["connection"].seen
    assert "coord serve" in checks["connection"].mend
    assert {checks[name].status for name in ("TLS", "version", "clock", "secret")} == {"warn"}


@pytest.mark.parametrize("url", ["https://no-such-machine.invalid:7400", "http://127.0.0.1:7400"])
async def test_an_address_that_leads_nowhere(url: str) -> None:
    checks = await looked_at(url)
    assert checks["address"].status == "fail"
    assert checks["address"].mend


async def test_what_speaks_no_tls_is_no_coordinator() -> None:
    async def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9.6\r\n")
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        checks = await looked_at(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        assert checks["connection"].status == "ok"
        assert checks["TLS"].status == "fail"
        assert "no Brigade coordinator" in checks["TLS"].seen


async def test_another_protocol_version_fails(tmp_path: Path) -> None:
    async with saying_hello(tmp_path, hello("9.0")) as url:
        checks = await looked_at(url)
        assert checks["version"].status == "fail"
        assert "9.0" in checks["version"].seen
        assert "same version" in checks["version"].mend


@pytest.mark.parametrize(
    ("ahead_s", "status"), [(0.0, "ok"), (60.0, "warn"), (400.0, "fail"), (-400.0, "fail"), (1e12, "fail")]
)
async def test_the_clock_is_compared(tmp_path: Path, ahead_s: float, status: str) -> None:
    async with saying_hello(tmp_path, hello(time_s=utc_now_s() + ahead_s)) as url:
        checks = await looked_at(url)
        assert checks["clock"].status == status
        assert bool(checks["clock"].mend) == (status != "ok")


async def doorway_of(doorway: Doorway) -> dict[str, Check]:
    return {check.name: check for check in await doorway_checks(doorway, HERE)}


async def test_a_free_port_can_be_had_and_leads_here() -> None:
    checks = await doorway_of(Doorway())
    assert {check.status for check in checks.values()} == {"ok"}


async def test_a_port_that_is_taken_fails() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        checks = await doorway_of(Doorway(listen_host="127.0.0.1", listen_port=port))
        assert checks["port"].status == "fail"
        assert "in use by another program" in checks["port"].seen
        assert "--listen" in checks["port"].mend


async def test_an_address_of_another_machine_fails() -> None:
    checks = await doorway_of(Doorway(listen_host="192.0.2.1"))
    assert checks["port"].status == "fail"


async def test_the_advertised_address_is_dialled(own_port: int) -> None:
    url = f"https://localhost:{own_port}"
    doorway = Doorway(listen_host="127.0.0.1", listen_port=own_port, advertise_url=url)
    assert (await doorway_of(doorway))["reachable"].status == "ok"


async def test_an_advertised_address_where_nobody_answers_fails(own_port: int) -> None:
    doorway = Doorway(listen_host="127.0.0.1", listen_port=own_port, advertise_url="https://127.0.0.1:1")
    check = (await doorway_of(doorway))["reachable"]
    assert check.status == "fail"
    assert "firewall" in check.mend


async def test_an_advertised_address_of_another_program_fails(own_port: int) -> None:
    async def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example.org")
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        doorway = Doorway(listen_host="127.0.0.1", listen_port=own_port, advertise_url=url)
        check = (await doorway_of(doorway))["reachable"]
        assert check.status == "fail"
        assert "another program" in check.seen


async def test_an_advertised_address_needs_a_port_of_its_own() -> None:
    check = (await doorway_of(Doorway(advertise_url="https://worker.example.org:7500")))["reachable"]
    assert check.status == "warn"
    assert "--listen" in check.mend


async def test_who_is_announced_on_the_local_network_is_named_and_looked_at() -> None:
    async with announced(7417) as coordinator_id:

        async def is_found() -> bool:
            check, urls = await announced_urls()
            return check.status == "ok" and coordinator_id in check.seen and "https://127.0.0.1:7417" in urls

        await eventually_answered(is_found)


async def test_an_invite_is_looked_at_without_using_it(tmp_path: Path) -> None:
    async with (
        running_coordinator(tmp_path) as coordinator,
        http_session(coordinator, key_of(coordinator, "admin")) as admin,
    ):
        answer = await admin.ask("POST", "/admin/v1/invites", CreateInviteRequest())
        invite = invite_from_text(answer.read(CreatedInvite).invite)
        checks = await coordinator_checks(coordinator.url, lambda: invite, utc_now_s)
        assert [check.status for check in checks] == ["ok"] * 6
        assert "whether it is still good shows when a worker joins" in checks[-1].seen
        invites = (await admin.ask("GET", "/admin/v1/invites?state=open")).read(InviteList).invites
        assert [(each.invite_id, each.workers) for each in invites] == [(invite.invite_id, ())]
