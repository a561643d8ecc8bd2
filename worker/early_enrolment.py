"""Enrolling before torch is loaded, which takes seconds, and half a minute where much else runs.

The coordinator keeps the blocks of a worker that it knows to be starting, and who can't be let in hears it at once.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from protocol.errors import DrainingError, OverloadedError, UnreachableError
from worker.config import WorkerConfig
from worker.enrolment import Credentials, enrol, utc_now_s
from worker.identity import load_identity, opened_state

_AT_MOST_S = 5.0
"""A coordinator that doesn't answer is waited for later, with torch loaded."""


async def early_credentials(config: WorkerConfig) -> Credentials | None:
    """What the coordinator grants to the identity in the state folder; None: it is away, or to be searched for.

    Raises:
        ConfigError: a setting can't be used, or another worker uses the state folder.
        StorageError: the state folder can't be used.
        WrongSecretError, ForbiddenError, ProtocolVersionError, ClockSkewError: it can't enrol, now or later.
    """
    if not config.coordinator_urls:
        return None
    with opened_state(config.state):
        identity = await asyncio.to_thread(load_identity, config.state)
        secret = await asyncio.to_thread(config.join_secret)
        with suppress(UnreachableError, OverloadedError, DrainingError, TimeoutError):
            async with asyncio.timeout(_AT_MOST_S):
                return await enrol(identity, config.coordinator_urls, secret, utc_now_s)
    return None
