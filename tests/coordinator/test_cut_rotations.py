"""Rotations of secrets and their lines in the audit log, whatever happens between the two."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest

from coordinator.app import RunningCoordinator, utc_now_s
from coordinator.cut_rotations import tell_cut_rotations, tell_untold_forever
from coordinator.keys import AUTHORITY, REPOSITORY, ROTATING
from coordinator.secret_sweep import expire_secrets_forever
from protocol.admin_rest import AuditPage
from protocol.running_beside import running_beside
from protocol.secret_rest import RotateSecretRequest
from tests.support.coordinators import Http, http_session, join_secret_of, key_of, running_coordinator
from tests.support.postgres import PostgresServer
from tests.support.waiting import eventually

SECRETS = "/admin/v1/secrets"
SOCKET_NAME = ".s.PGSQL.5432"


async def rotate(admin: Http, what: str = "join", grace_s: int = 3600) -> int:
    return (await admin.ask("POST", f"{SECRETS}/{what}/rotate", RotateSecretRequest(grace_s=grace_s))).status


async def rotations(admin: Http) -> list[str]:
    """What the audit log says of rotations, oldest first."""
    found = (await admin.ask("GET", "/admin/v1/audit?subject=cluster")).read(AuditPage)
    return [line.action for line in reversed(found.entries) if "rotat" in line.action]


async def told(coordinator: RunningCoordinator, admin: Http) -> list[str]:
    """As `rotations`, once what was still to be said has been said."""
    app = coordinator.application
    telling = tell_untold_forever(app[ROTATING], app[REPOSITORY], app[AUTHORITY].secrets, utc_now_s, every_s=0.001)
    async with running_beside(telling=telling):
        await eventually(lambda: not app[ROTATING].has_untold)
    return await rotations(admin)


@pytest.mark.parametrize("what", ["join", "signing-key"])
async def test_one_that_waited_for_its_turn_is_not_taken_for_one_that_failed(tmp_path: Path, what: str) -> None:
    """Between what is asked and what is done others may rotate, and the database may be slow."""
    moments = itertools.count(utc_now_s(), 2.0)  # a slow program: each look at the clock takes 2 s
    async with (
        running_coordinator(tmp_path, clock=lambda: next(moments)) as coordinator,
        http_session(coordinator, key_of(coordinator, "admin")) as admin,
    ):
        assert await rotate(admin, what) == 200
        said, app = await rotations(admin), coordinator.application
        assert len(said) == 1
        now = datetime.fromtimestamp(next(moments), UTC)
        await tell_cut_rotations(app[REPOSITORY], app[AUTHORITY].secrets.rotated_at, now)  # as a start does
        assert await rotations(admin) == said


async def test_secrets_that_end_do_not_wait_for_a_rotation(tmp_path: Path) -> None:
    async with (
        running_coordinator(tmp_path) as coordinator,
        http_session(coordinator, key_of(coordinator, "admin")) as admin,
    ):
        assert await rotate(admin, "signing-key", grace_s=1) == 200
        app = coordinator.application
        sweep = expire_secrets_forever(app, every_s=0.01)
        async with app[ROTATING].turn, running_beside(sweep=sweep):  # the turn of one that waits for the database
            await eventually(lambda: len(app[AUTHORITY].secrets.signing_keys) == 1)


@dataclass(slots=True)
class Cutting:
    """Hands on what is said to PostgreSQL and back, but for the answer to the commit of a rotation's line."""

    server: Path
    is_to_cut: bool = False
    has_cut: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_unix_connection(str(self.server / SOCKET_NAME))
        is_cut = asyncio.Event()
        with closing(writer), closing(to_server):
            async with running_beside(asked=self._asked(reader, to_server, is_cut)):
                while data := await from_server.read(2**16):
                    if not is_cut.is_set():
                        writer.write(data)
        if is_cut.is_set():
            self.has_cut.set()

    async def _asked(
        self, reader: asyncio.StreamReader, to_server: asyncio.StreamWriter, is_cut: asyncio.Event
    ) -> None:
        has_line = False
        while not is_cut.is_set() and (data := await reader.read(2**16)):
            has_line |= self.is_to_cut and b"join_secret_rotated" in data
            if has_line and b"COMMIT" in data:
                self.is_to_cut = False
                is_cut.set()
            to_server.write(data)
        to_server.write_eof()


@asynccontextmanager
async def cutting(server: Path, folder: Path) -> AsyncIterator[Cutting]:
    """PostgreSQL's socket, in `folder` too."""
    relay = Cutting(server)
    async with await asyncio.start_unix_server(relay.serve, folder / SOCKET_NAME):
        yield relay


async def test_a_database_that_goes_as_it_takes_the_line_leaves_none_that_is_not_true(
    tmp_path: Path, postgres_server: PostgresServer
) -> None:
    """The line is there, the caller is told that it failed, and nothing was rotated."""
    server = postgres_server.socket_folder
    url = postgres_server.new_database().replace(str(server), str(tmp_path))
    async with (
        cutting(server, tmp_path) as relay,
        running_coordinator(tmp_path, database_url=url) as coordinator,
        http_session(coordinator, key_of(coordinator, "admin")) as admin,
    ):
        before = join_secret_of(coordinator)
        relay.is_to_cut = True
        assert await rotate(admin) == 507
        await asyncio.wait_for(relay.has_cut.wait(), 10)
        assert join_secret_of(coordinator) == before
        assert (await rotations(admin))[:1] == ["join_secret_rotated"]  # the coordinator's own look may have come
        assert await told(coordinator, admin) == ["join_secret_rotated", "rotation_failed"]
        assert await rotate(admin) == 200
        assert await told(coordinator, admin) == ["join_secret_rotated", "rotation_failed", "join_secret_rotated"]
