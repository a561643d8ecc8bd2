"""Class 2. Defences: every route names the kinds that may use it; a kind is signed, stored, or in a certificate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from protocol.api_key import api_key_from_text
from protocol.errors import UnauthenticatedError
from protocol.messages import SessionEnded
from protocol.pinned_http import pinned_session
from protocol.tls import server_context
from tests.support.coordinators import http_session, key_of, running_coordinator
from tests.support.joining import WorkerKey, enrolled, proven_join
from tests.support.ring import running_ring
from tests.support.ring_generation import Generation
from tests.support.tiny_checkpoint import TinyCheckpoint

Checkpoints = Callable[[str], TinyCheckpoint]
ADMIN_ROUTES = (
    ("GET", "/admin/v1/status"),
    ("GET", "/admin/v1/models"),
    ("POST", "/admin/v1/models"),
    ("DELETE", "/admin/v1/models/tiny"),
    ("GET", "/admin/v1/keys"),
    ("POST", "/admin/v1/keys"),
    ("DELETE", "/admin/v1/keys/abcd1234"),
    ("POST", "/admin/v1/workers/w-x/drain"),
)
CLIENT_ROUTES = (("GET", "/v1/models"), ("GET", "/v1/models/tiny"), ("POST", "/v1/routes"))
WORKER_ROUTES = (
    ("GET", "/v1/worker/control"),
    ("POST", "/v1/worker/not-coming"),
    ("POST", "/v1/worker/sources"),
)


async def test_no_kind_of_credential_passes_for_another(tmp_path: Path) -> None:
    """Fails if `check_caller` or its table of kinds is taken out."""
    async with running_coordinator(tmp_path) as coordinator:
        token = (await enrolled(coordinator, WorkerKey())).session_token
        forbidden = {
            token: ADMIN_ROUTES + CLIENT_ROUTES,
            key_of(coordinator, "client"): ADMIN_ROUTES + WORKER_ROUTES,
            key_of(coordinator, "admin"): WORKER_ROUTES,
        }
        for credential, routes in forbidden.items():
            async with http_session(coordinator, credential) as http:
                got = {route: (await http.ask(*route)).status for route in routes}
            assert got == dict.fromkeys(routes, 403)


async def test_without_a_credential_nothing_but_hello_ca_and_joining_answers(tmp_path: Path) -> None:
    """Fails if a route is open by mistake."""
    async with running_coordinator(tmp_path) as coordinator, http_session(coordinator) as http:
        routes = (*ADMIN_ROUTES, *CLIENT_ROUTES, *WORKER_ROUTES, ("GET", f"/v1/files/{'a' * 64}"))
        assert {(await http.ask(*route)).status for route in routes} == {401}


async def test_a_client_key_renamed_admin_is_no_admin_key(tmp_path: Path) -> None:
    """Fails if the kind that the key says is believed instead of the stored one."""
    async with running_coordinator(tmp_path) as coordinator:
        renamed = key_of(coordinator, "client").replace("brigade-client.", "brigade-admin.")
        async with http_session(coordinator, renamed) as http:
            assert (await http.ask("GET", "/admin/v1/status")).status == 401


async def test_api_keys_enrol_no_worker(tmp_path: Path) -> None:
    """Fails if anything but the join secret makes the key of the MAC."""
    async with running_coordinator(tmp_path) as coordinator:
        for kind in ("client", "admin"):
            text = key_of(coordinator, kind)
            for secret in (text, api_key_from_text(text).secret):
                async with http_session(coordinator, text) as http:
                    proven = await proven_join(http, coordinator, WorkerKey(), secret=secret)
                    answer = await http.ask("POST", "/v1/join", proven.body, headers=proven.headers())
                assert answer.status == 401


async def test_a_worker_cannot_pose_as_the_coordinator(tmp_path: Path) -> None:
    """Fails if clients check the CA only and not the name in the certificate: the worker gets no API key."""
    seen: list[str | None] = []
    async with running_coordinator(tmp_path) as coordinator:
        key = WorkerKey()
        grant = await enrolled(coordinator, key)
        url, runner = await _posing(tmp_path, key, grant.certificate_pem, grant.ca_pem, seen)
        try:
            with pytest.raises(UnauthenticatedError, match="certificate"):
                async with pinned_session(url, api_key_from_text(key_of(coordinator, "client"))):
                    pass
        finally:
            await runner.cleanup()
    assert seen == [None]  # the CA was asked for, without a key


async def _posing(
    folder: Path, key: WorkerKey, certificate_pem: str, ca_pem: str, seen: list[str | None]
) -> tuple[str, web.AppRunner]:
    async def answer(request: web.Request) -> web.Response:
        seen.append(request.headers.get("Authorization"))
        return web.Response(text=ca_pem)

    (folder / "own.pem").write_text(certificate_pem)
    (folder / "own.key").write_bytes(key.private_pem())
    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    context = server_context(folder / "own.pem", folder / "own.key")
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    return f"https://127.0.0.1:{runner.addresses[0][1]}", runner


async def test_a_worker_cannot_pose_as_another_worker(checkpoint: Checkpoints, tmp_path: Path) -> None:
    """Fails if who dials a worker doesn't check the id in its certificate."""
    async with running_ring(checkpoint("llama"), tmp_path, (2,)) as ring:
        first, second = ring.workers
        first.url, second.url = second.url, first.url
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await ring.connect(first)


async def test_a_workers_certificate_is_no_clients_ticket(checkpoint: Checkpoints, tmp_path: Path) -> None:
    """Fails if a ticket's `previous` isn't compared with who shows it."""
    async with running_ring(checkpoint("llama"), tmp_path) as ring:
        wire = await ring.connect(ring.workers[0], as_worker=ring.authority.worker(tmp_path))
        generation = await Generation.prepared(ring, [1, 2], head_wire=wire)
        await generation.open()
        assert (await wire.receive(SessionEnded)).error.code == "forbidden"
