"""Enrolling before torch is loaded, which takes seconds, and half a minute where much else runs.

The coordinator keeps the blocks of a worker that it knows to be starting, and who can't be let in hears it at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

from protocol.errors import DrainingError, OverloadedError, UnreachableError
from worker.config import WorkerConfig
from worker.enrolment import Credentials, enrol, utc_now_s
from worker.goodbye import granted
from worker.identity import Identity, load_identity
from worker.when_needed import coordinator_on_network

_AT_MOST_S = 5.0
"""A coordinator that doesn't answer is waited for later, with torch loaded."""
_SEARCH_AT_MOST_S = 15.0
"""One search, and being let in by the first that is found."""
_PASSING = (UnreachableError, OverloadedError, DrainingError, TimeoutError)


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlyStart:
    """How far a worker has come without torch."""

    config: WorkerConfig
    """With the coordinator's addresses, if it was found."""
    credentials: Credentials | None
    """None: the coordinator is away, or wasn't found."""


async def early_start(config: WorkerConfig, tell: Callable[[str], None]) -> EarlyStart:
    """Enrol with the identity in the state folder, which the caller holds (`identity.opened_state`).

    Raises:
        ConfigError: a setting can't be used.
        StorageError: the state folder can't be used.
        WrongSecretError, ForbiddenError, ProtocolVersionError, ClockSkewError: it can't enrol, now or later.
    """
    identity = await asyncio.to_thread(load_identity, config.state)
    with suppress(*_PASSING):
        if not config.coordinator_urls:
            return await _found(config, identity, tell)
        return EarlyStart(config=config, credentials=await granted(partial(_enrolled, config, identity)))
    return EarlyStart(config=config, credentials=None)


async def _enrolled(config: WorkerConfig, identity: Identity) -> Credentials:
    secret = await asyncio.to_thread(config.join_secret)
    async with asyncio.timeout(_AT_MOST_S):
        return await enrol(identity, config.coordinator_urls, secret, utc_now_s)


async def _found(config: WorkerConfig, identity: Identity, tell: Callable[[str], None]) -> EarlyStart:
    tell("no coordinator's address is given: searching the local network")
    async with asyncio.timeout(_SEARCH_AT_MOST_S):
        found = await coordinator_on_network(identity, config.join_secret, utc_now_s, tell)
    return EarlyStart(config=replace(config, coordinator_urls=found.urls), credentials=found.credentials)
