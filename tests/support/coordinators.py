"""A real coordinator on a free port, and requests to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import msgspec

from coordinator.app import RunningCoordinator, running, utc_now_s
from coordinator.config import CoordinatorConfig
from coordinator.state_folder import StateFolder
from protocol.codec import decode_json, encode_json
from protocol.compatibility import VERSION_HEADER
from protocol.messages import PROTOCOL_VERSION
from protocol.tls import COORDINATOR_NAME, client_context
from tests.support.migrated_once import put_migrated_database
from tests.support.waiting import DEADLINE_S

PATIENT = {"suspect_after_s": 600.0, "lost_after_s": 1200.0}
"""A worker that says something only when its test has it do so isn't silent because the machine is busy."""
M = TypeVar("M")


@asynccontextmanager
async def running_coordinator(
    tmp_path: Path, *, clock: Callable[[], float] = utc_now_s, is_patient: bool = True, **config: Any
) -> AsyncIterator[RunningCoordinator]:
    """A coordinator with its state in `tmp_path`/state; `config` overrides settings.

    A state folder that isn't there is made with a database that has the newest schema already.
    `is_patient`: workers may be silent for minutes. Otherwise for as long as the programs let them.
    """
    settings = {"state": tmp_path / "state", "listen_port": 0, "settle_s": 0.0} | (PATIENT if is_patient else {})
    if not config.keys() & {"state", "database_url"}:
        await asyncio.to_thread(put_migrated_database, tmp_path / "state")
    async with running(CoordinatorConfig(**settings | config), clock=clock) as coordinator:
        yield coordinator


@dataclass(frozen=True, slots=True, kw_only=True)
class ReachedCoordinator:
    """A coordinator in another process on this machine, as far as it is to be reached."""

    port: int
    ca_pem: str
    state_folder: StateFolder


def key_of(coordinator: RunningCoordinator | ReachedCoordinator, kind: str) -> str:
    """The first key of a kind, `admin` or `client`."""
    text = coordinator.state_folder.read(f"{kind}.key")
    assert text is not None
    return text


def join_secret_of(coordinator: RunningCoordinator | ReachedCoordinator) -> str:
    """What workers join with."""
    text = coordinator.state_folder.read("join-secret")
    assert text is not None
    return text


def bearer(token: str) -> dict[str, str]:
    """The header that shows a credential."""
    return {"Authorization": f"Bearer {token}"}


@asynccontextmanager
async def http_session(
    coordinator: RunningCoordinator | ReachedCoordinator, token: str | None = None
) -> AsyncIterator[Http]:
    """Verified requests to the coordinator, with a credential if one is given."""
    is_ours = isinstance(coordinator, RunningCoordinator)
    connector = aiohttp.TCPConnector(
        ssl=client_context(coordinator.authority.ca_pem if is_ours else coordinator.ca_pem)
    )
    headers = {VERSION_HEADER: PROTOCOL_VERSION} | (bearer(token) if token is not None else {})
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:
        yield Http(session=session, url=f"https://127.0.0.1:{coordinator.port}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back."""

    status: int
    headers: Any
    body: bytes

    def read(self, kind: type[M]) -> M:
        """The body as a `kind`."""
        return decode_json(self.body, kind)


@dataclass(frozen=True, slots=True, kw_only=True)
class Http:
    """Requests by path."""

    session: aiohttp.ClientSession
    url: str

    async def ask(self, method: str, path: str, body: Any = None, **options: Any) -> Answer:
        """One request; `body` is a struct, anything that aiohttp sends, or None."""
        headers = dict(options.pop("headers", {}))
        if isinstance(body, msgspec.Struct):
            body = encode_json(body)
        if body is not None:
            headers.setdefault("Content-Type", "application/json")
        async with (
            asyncio.timeout(DEADLINE_S),
            self.session.request(
                method, self.url + path, data=body, headers=headers, server_hostname=COORDINATOR_NAME, **options
            ) as response,
        ):
            return Answer(status=response.status, headers=response.headers, body=await response.read())
