"""Rotated secrets that count no longer are forgotten: in memory, on the disk, and by the workers who use them."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import structlog
from aiohttp import web

from coordinator.keys import AUTHENTICATOR, AUTHORITY, CLOCK, CONTROL_SOCKETS
from protocol.errors import StorageError

log = structlog.get_logger(__name__)

EXPIRY_S = 5.0
"""How late one that ended may still count."""


async def expire_secrets_forever(app: web.Application, *, every_s: float = EXPIRY_S) -> None:
    """Look every `every_s` seconds, until cancelled. A disk that can't be written is tried again next time."""
    files = app[AUTHORITY].secrets
    verifying = set(files.signing_keys)
    while True:
        await asyncio.sleep(every_s)
        try:
            await asyncio.to_thread(files.remove_expired, datetime.fromtimestamp(app[CLOCK](), UTC))
        except StorageError as error:
            log.warning("expired_secret_not_removed", error_message=error.message)
        before, verifying = verifying, set(files.signing_keys)
        if before - verifying:
            await close_outdated_sockets(app)


async def close_outdated_sockets(app: web.Application) -> None:
    """Close the control sockets whose session tokens verify no longer: who comes back joins anew.

    Their tickets are signed with a key that whoever has the rotated one can work out.
    """
    is_in_force = app[AUTHENTICATOR].is_in_force
    outdated = [socket for socket, caller in app[CONTROL_SOCKETS].items() if not is_in_force(caller)]
    async with asyncio.TaskGroup() as tasks:
        for socket in outdated:
            tasks.create_task(socket.close(), name="close-control-socket")
