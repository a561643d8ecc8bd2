from __future__ import annotations

import asyncio
import datetime
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from cryptography import x509

from coordinator.app import RunningCoordinator, utc_now_s
from protocol.errors import (
    ClockSkewError,
    OverloadedError,
    ProtocolVersionError,
    UnreachableError,
    WrongSecretError,
)
from protocol.exit_codes import EXIT_AUTH, EXIT_CLOCK, EXIT_UNREACHABLE, EXIT_VERSION
from protocol.messages import PROTOCOL_VERSION
from protocol.tls import first_contact_context, server_context, worker_name
from tests.support.coordinators import join_secret_of, running_coordinator
from tests.support.open_files import WatchedThreads
from tests.support.pki import TestAuthority
from worker.enrolment import PREVIOUS_KEY_S, CredentialsHolder, asked_delay_s, enrol
from worker.identity import Identity, load_identity


@pytest.fixture
def identity(tmp_path: Path) -> Identity:
    return load_identity(tmp_path)


@asynccontextmanager
async def impostor(tmp_path: Path, answers: dict[str, object], context: bool = True) -> AsyncIterator[str]:
    """A server that answers as it is told; returns its address."""

    async def answer(request: web.Request) -> web.StreamResponse:
        return web.json_response(answers[request.path]) if request.path in answers else web.Response(status=404)

    files = TestAuthority().worker(tmp_path)
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    tls = server_context(files.certificate, files.key) if context else None
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
    try:
        yield f"https://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def hello(**changes: object) -> dict[str, object]:
    body = {
        "program": "brigade-coordinator",
        "protocol_version": "1.0",
        "coordinator_id": "c",
        "time_s": utc_now_s(),
    }
    return body | changes


async def test_a_worker_gets_credentials_for_its_own_key(tmp_path: Path, identity: Identity) -> None:
    async with running_coordinator(tmp_path) as coordinator:
        got = await enrol(identity, (coordinator.url + "/",), join_secret_of(coordinator), utc_now_s)
        certificate = x509.load_pem_x509_certificate(got.certificate.read_bytes())
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert identity.owns(certificate)
        assert names.get_values_for_type(x509.DNSName) == [worker_name(identity.worker_id)]
        assert got.coordinator_id == coordinator.authority.coordinator_id
        assert got.ca_pem == coordinator.authority.ca_pem
        assert got.coordinator_url == coordinator.url
        assert utc_now_s() < got.renew_at_s < got.expires_at_s
        assert got.session_token not in repr(got)
        assert repr(got.ticket_key) not in repr(got)


async def test_enrolling_again_keeps_the_identity(tmp_path: Path, identity: Identity) -> None:
    async with running_coordinator(tmp_path) as coordinator:
        secret = join_secret_of(coordinator)
        first = await enrol(identity, (coordinator.url,), secret, utc_now_s)
        again = await enrol(load_identity(tmp_path), (coordinator.url,), secret, utc_now_s)
        assert first.ticket_key == again.ticket_key


async def test_a_wrong_secret_is_its_own_error(tmp_path: Path, identity: Identity) -> None:
    async with running_coordinator(tmp_path) as coordinator:
        secret = secrets.token_urlsafe(32)
        with pytest.raises(WrongSecretError) as caught:
            await enrol(identity, (coordinator.url,), secret, utc_now_s)
        assert caught.value.exit_code == EXIT_AUTH
        assert secret not in caught.value.message
        assert not identity.certificate_path.exists()


@pytest.mark.parametrize("off_s", [3600.0, -3600.0])
async def test_a_clock_that_is_off_is_its_own_error_and_both_are_named(
    tmp_path: Path, identity: Identity, off_s: float
) -> None:
    async with running_coordinator(tmp_path) as coordinator:
        with pytest.raises(ClockSkewError) as caught:
            await enrol(identity, (coordinator.url,), join_secret_of(coordinator), lambda: utc_now_s() + off_s)
        ours = datetime.datetime.fromtimestamp(utc_now_s() + off_s, datetime.UTC)
        assert caught.value.exit_code == EXIT_CLOCK
        assert f"{ours:%Y-%m-%d %H:}" in caught.value.message
        assert caught.value.message.count("UTC") == 2


@pytest.mark.parametrize("time_s", [float("1e300"), -1e300, 0.0])
async def test_an_absurd_clock_is_told_too(tmp_path: Path, identity: Identity, time_s: float) -> None:
    async with impostor(tmp_path, {"/v1/hello": hello(time_s=time_s)}) as url:
        with pytest.raises(ClockSkewError):
            await enrol(identity, (url,), secrets.token_hex(32), utc_now_s)


async def test_another_version_is_its_own_error(tmp_path: Path, identity: Identity) -> None:
    async with impostor(tmp_path, {"/v1/hello": hello(protocol_version="2.0")}) as url:
        with pytest.raises(ProtocolVersionError, match=rf"2\.0.*{PROTOCOL_VERSION}") as caught:
            await enrol(identity, (url,), secrets.token_hex(32), utc_now_s)
        assert caught.value.exit_code == EXIT_VERSION


@pytest.mark.parametrize("answers", [{}, {"/v1/hello": {"hello": "world"}}, {"/v1/hello": []}])
async def test_another_program_is_unreachable(
    tmp_path: Path, identity: Identity, answers: dict[str, object]
) -> None:
    async with impostor(tmp_path, answers) as url:
        with pytest.raises(UnreachableError, match="check the address") as caught:
            await enrol(identity, (url,), secrets.token_hex(32), utc_now_s)
        assert caught.value.exit_code == EXIT_UNREACHABLE


async def test_a_program_without_tls_is_unreachable(tmp_path: Path, identity: Identity) -> None:
    async with impostor(tmp_path, {}, context=False) as url:
        with pytest.raises(UnreachableError, match=r"TLS 1\.3"):
            await enrol(identity, (url,), secrets.token_hex(32), utc_now_s)


async def test_nobody_there_is_unreachable(identity: Identity) -> None:
    with pytest.raises(UnreachableError, match=r"nobody answers at https://127\.0\.0\.1:1 "):
        await enrol(identity, ("https://127.0.0.1:1",), secrets.token_hex(32), utc_now_s)
    with pytest.raises(UnreachableError, match=r"no\.such\.host"):
        await enrol(identity, ("https://no.such.host.invalid:1",), secrets.token_hex(32), utc_now_s)


async def test_addresses_are_tried_in_order(tmp_path: Path, identity: Identity) -> None:
    async with running_coordinator(tmp_path) as coordinator:
        urls = ("https://127.0.0.1:1", coordinator.url)
        got = await enrol(identity, urls, join_secret_of(coordinator), utc_now_s)
        assert got.coordinator_url == coordinator.url
        with pytest.raises(WrongSecretError):
            await enrol(identity, urls, secrets.token_hex(32), utc_now_s)
    with pytest.raises(UnreachableError, match=r":1 .*:2 "):
        await enrol(identity, ("https://127.0.0.1:1", "https://127.0.0.1:2"), secrets.token_hex(32), utc_now_s)


async def test_an_impostor_that_grants_without_proof_gets_nothing_in(tmp_path: Path, identity: Identity) -> None:
    answers = {
        "/v1/hello": hello(),
        "/v1/join/challenge": {
            "protocol_version": "1.0",
            "coordinator_id": "c",
            "server_nonce": "0" * 64,
            "expires_in_s": 30,
        },
        "/v1/join": {
            "certificate_pem": "",
            "ca_pem": "",
            "session_token": "x",
            "session_token_expires_in_s": 9.0,
            "ticket_key": "00" * 32,
            "coordinator_id": "c",
        },
    }
    async with impostor(tmp_path, answers) as url:
        with pytest.raises(WrongSecretError, match="can't prove"):
            await enrol(identity, (url,), secrets.token_hex(32), utc_now_s)
    assert not identity.certificate_path.exists()


async def relay(coordinator: RunningCoordinator, tmp_path: Path, stack: list[asyncio.Server]) -> str:
    """A man in the middle: own certificate towards the worker, TLS of its own towards the coordinator."""
    files = TestAuthority().worker(tmp_path)

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection(
            "127.0.0.1", coordinator.port, ssl=first_contact_context()
        )
        await asyncio.gather(pipe(reader, up_writer), pipe(up_reader, writer))

    context = server_context(files.certificate, files.key)
    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=context)
    stack.append(server)
    return f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_a_man_in_the_middle_who_relays_everything_fails(tmp_path: Path, identity: Identity) -> None:
    servers: list[asyncio.Server] = []
    async with running_coordinator(tmp_path) as coordinator:
        url = await relay(coordinator, tmp_path, servers)
        with pytest.raises(WrongSecretError):
            await enrol(identity, (url,), join_secret_of(coordinator), utc_now_s)
        servers[0].close()
        await asyncio.sleep(0)


async def test_renewed_credentials_are_told_and_the_old_ticket_key_verifies_on_for_a_while(
    tmp_path: Path, identity: Identity
) -> None:
    async with running_coordinator(tmp_path) as coordinator:
        secret = join_secret_of(coordinator)
        first = await enrol(identity, (coordinator.url,), secret, utc_now_s)
        now_s = 0.0
        holder = CredentialsHolder(first, clock=lambda: now_s)
        told = []
        holder.on_replaced(told.append)
        await asyncio.to_thread(
            coordinator.authority.secrets.rotate_signing_key, datetime.datetime.now(datetime.UTC)
        )
        second = await enrol(identity, (coordinator.url,), secret, utc_now_s)
        holder.replace(second)
        assert told == [second]
        assert holder.current is second
        assert holder.ticket_keys == (first.ticket_key, second.ticket_key)
        assert first.ticket_key != second.ticket_key
        now_s += PREVIOUS_KEY_S
        assert holder.ticket_keys == (second.ticket_key,), "a signing key that got out opens nothing for ever"


def test_a_stranger_who_says_to_wait_for_years_is_asked_again_within_a_minute() -> None:
    assert asked_delay_s(OverloadedError("busy", retry_after_s=1e9)) <= 60
    assert asked_delay_s(OverloadedError("busy", retry_after_s=2.0)) == 2
    assert asked_delay_s(UnreachableError("away")) == 0


async def test_who_gives_up_while_its_certificate_is_written_is_gone_when_it_is_written(
    tmp_path: Path, identity: Identity
) -> None:
    """Else the next try writes the same file beside the first one."""
    async with running_coordinator(tmp_path) as coordinator:
        loop, threads, times = asyncio.get_running_loop(), WatchedThreads(1), list[float]()
        url, secret = coordinator.url, join_secret_of(coordinator)
        await enrol(identity, (url,), secret, lambda: times.append(utc_now_s()) or times[-1])
        n_looks = len(times)

        def clock() -> float:
            """The last look at it is for what is written."""
            times.append(utc_now_s())
            if len(times) == 2 * n_looks:
                loop.set_default_executor(threads)
            return times[-1]

        async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
            task = tasks.create_task(enrol(identity, (url,), secret, clock))
            await threads.given[0].wait()
            for _ in range(3):
                task.cancel()
                await asyncio.sleep(0)
            is_over = task.done()
            threads.may_begin.set()
        assert not is_over
        assert task.cancelled()
