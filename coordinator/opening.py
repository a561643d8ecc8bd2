"""Everything that a coordinator stands on, opened in order: folder, lock, authority, database, first API keys."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncEngine
from yarl import URL

from coordinator import database
from coordinator import state_folder as names
from coordinator.authority import Authority
from coordinator.config import CoordinatorConfig
from coordinator.cut_rotations import tell_cut_rotations
from coordinator.lease import LeaseTable
from coordinator.lease_keeper import LeaseKeeper, holder_of
from coordinator.repository import Repository
from coordinator.state_folder import StateFolder
from coordinator.stop_limit import StopLimit
from protocol.api_key import ApiKey, api_key_from_text, new_api_key, secret_hash
from protocol.background import uninterrupted
from protocol.errors import UnauthenticatedError
from protocol.key_rest import KeyKind

GIVEN_UP_S = 1.0
"""Whoever gives a start up waits so long for the lease to be let go; else it lapses by itself."""
FIRST_KEYS: tuple[tuple[KeyKind, str], ...] = (("admin", names.ADMIN_KEY), ("client", names.CLIENT_KEY))
"""Keys that every state folder has, and their files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedState:
    """What `opened_state` opened."""

    folder: StateFolder
    authority: Authority
    engine: AsyncEngine
    repository: Repository
    lease: LeaseKeeper


@asynccontextmanager
async def opened_state(config: CoordinatorConfig, now: datetime) -> AsyncIterator[OpenedState]:
    """Open the state folder (for us alone) and the database; what is missing is made.

    Raises:
        ConfigError: the join secret is too weak.
        ConflictError: another coordinator runs on the folder, or the database is another coordinator's.
        StorageError: the folder or the database can't be used (DatabaseVersionError: too new; LeaseError: another
            coordinator serves it).
    """
    began_s = asyncio.get_running_loop().time()
    with ExitStack() as stack:
        # to its end: the lock is held, and the folder written, until a cancelled start has really stopped
        folder, authority = await uninterrupted(asyncio.to_thread(_opened_folder, config, now, stack))
        database_url = config.database_url or folder.database_url
        async with database.opened(database_url, database.LEASE_SCHEMA) as engine:
            repository = Repository(engine)
            lease = LeaseKeeper(
                LeaseTable(repository.transactions),
                await asyncio.to_thread(holder_of, folder, authority.coordinator_id),
                config.public_url or f"{config.listen_host}:{config.listen_port}",
            )
            await repository.check_owner(authority.coordinator_id)
            async with lease.held(takes_over=config.take_over), _given_up(repository.transactions.stop_limit):
                if config.take_over and not authority.secrets.has_new_secret:
                    # the copy of the folder may have been renewed while this coordinator stood by
                    stood_by = timedelta(seconds=asyncio.get_running_loop().time() - began_s)
                    authority = await asyncio.to_thread(_authority, folder, config, now + stood_by)
                await database.migrated(database_url)
                await repository.claim(authority.coordinator_id)
                await _ensure_first_keys(folder, authority, repository, now)
                await tell_cut_rotations(repository, authority.secrets.rotated_at, now)
                yield OpenedState(
                    folder=folder, authority=authority, engine=engine, repository=repository, lease=lease
                )


@asynccontextmanager
async def _given_up(stop_limit: StopLimit) -> AsyncIterator[None]:
    """A start that is given up may be so because the database hangs: what is still to be said to it isn't much."""
    try:
        yield
    except asyncio.CancelledError:
        if not stop_limit.has_begun:
            stop_limit.begin(GIVEN_UP_S)
        raise


def _opened_folder(config: CoordinatorConfig, now: datetime, stack: ExitStack) -> tuple[StateFolder, Authority]:
    folder = StateFolder(config.state)
    stack.enter_context(folder.locked())
    return folder, _authority(folder, config, now)


def _authority(folder: StateFolder, config: CoordinatorConfig, now: datetime) -> Authority:
    hosts = [config.listen_host]
    if config.public_url and (public_host := URL(config.public_url).host):
        hosts.append(public_host)
    return Authority(folder, now=now, secret=config.secret, hosts=hosts)


async def _ensure_first_keys(
    folder: StateFolder, authority: Authority, repository: Repository, now: datetime
) -> None:
    """See that both key files hold keys of this cluster that the database knows (it may be a new one)."""
    for kind, name in FIRST_KEYS:
        key = await asyncio.to_thread(_key_in_file, folder, name, kind, authority.ca_fingerprint)
        if await repository.api_key(key.key_id) is None:
            label = f"first {kind} key"
            await repository.add_api_key(key.key_id, label, kind, secret_hash(key.secret), now)


def _key_in_file(folder: StateFolder, name: str, kind: KeyKind, ca_fingerprint: str) -> ApiKey:
    """The key in the file, or a new one that is written there if none of this cluster is."""
    text = folder.read(name)
    if text is not None:
        try:
            key = api_key_from_text(text)
        except UnauthenticatedError:
            pass
        else:
            if (key.kind, key.ca_fingerprint) == (kind, ca_fingerprint):
                return key
    key = new_api_key(kind, ca_fingerprint)
    folder.write(name, key.text())
    return key
