"""A worker's port with an application behind it: TLS, names and limits as in a worker, without the worker."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web

from protocol.guarded_application import guarded_application
from protocol.ids import CoordinatorId
from protocol.tls import client_context, worker_name
from tests.support.pki import TestAuthority, WorkerFiles
from tests.support.raw_http import Door
from worker.enrolment import Credentials, CredentialsHolder
from worker.site import Site, bound_socket


@asynccontextmanager
async def worker_door(
    tmp_path: Path,
    add_routes: Callable[[web.Application], object] = lambda _app: None,
    *,
    names: frozenset[str] = frozenset(),
    idle_s: float = 30.0,
) -> AsyncIterator[tuple[Door, TestAuthority, WorkerFiles]]:
    """The door, whose certificates the worker believes, and the worker's own files."""
    authority = TestAuthority()
    files = authority.worker(tmp_path)
    bound = bound_socket("127.0.0.1", 0)
    app = guarded_application(names, who="worker", option="--advertise")
    add_routes(app)
    credentials = Credentials(
        coordinator_url="https://127.0.0.1:1",
        coordinator_id=CoordinatorId("c-test"),
        certificate=files.certificate,
        key=files.key,
        ca_pem=authority.ca_pem,
        session_token="none",
        ticket_key=bytes(32),
        renew_at_s=0.0,
        expires_at_s=0.0,
    )
    async with Site(app, bound, CredentialsHolder(credentials), idle_s=idle_s):
        context = client_context(authority.ca_pem)
        yield (
            Door(port=bound.getsockname()[1], context=context, name=worker_name(files.worker_id)),
            authority,
            files,
        )
