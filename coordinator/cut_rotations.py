"""Rotations of secrets that the audit log has and the state folder hasn't: found, and said in the log.

The act is in the log before it is done (`secret_api`), so whoever dies in between leaves a line that isn't true.
So does a disk that has no room for the secret, nor then for the line that says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import structlog

from coordinator.audit_log import AuditFilter, AuditLog
from coordinator.policy.effects import WriteAudit
from coordinator.repository import Repository
from coordinator.secret_files import Rotation, SecretFiles
from protocol.admin_rest import AuditEntry
from protocol.errors import StorageError

log = structlog.get_logger(__name__)

TELL_S = 5.0
"""Between two attempts to say what is still to be said."""
_APART = timedelta(seconds=1)
"""A rotation and its line in the log are dated one after the other."""


@dataclass(slots=True, kw_only=True)
class Rotating:
    """Whose turn it is to rotate, and what is still to be said of earlier turns."""

    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held from the line in the log to the secret in the folder: what is under way isn't taken to have failed."""
    has_untold: bool = False
    """Whether the log may have a line that isn't true, and none that says so. Set before a rotation's line is
    written: a database that goes away as it commits may have it or not."""


async def tell_untold_forever(
    rotating: Rotating,
    repository: Repository,
    files: SecretFiles,
    clock: Callable[[], float],
    *,
    every_s: float = TELL_S,
) -> None:
    """Say what is still to be said once the database takes it, until cancelled."""
    while True:
        await asyncio.sleep(every_s)
        if not rotating.has_untold:
            continue
        async with rotating.turn:
            try:
                await tell_untold(rotating, repository, files, datetime.fromtimestamp(clock(), UTC))
            except StorageError as error:
                log.debug("failed_rotation_not_said_yet", error_message=error.message)


async def tell_untold(rotating: Rotating, repository: Repository, files: SecretFiles, now: datetime) -> None:
    """Say what is still to be said. The caller holds the turn.

    Raises:
        StorageError: the database can't be used: call it again later.
    """
    if rotating.has_untold:
        await tell_cut_rotations(repository, files.rotated_at, now)
        rotating.has_untold = False


async def tell_cut_rotations(
    repository: Repository, rotated_at: Mapping[Rotation, datetime | None], now: datetime
) -> None:
    """Write a line for each rotation that wasn't done, once.

    Args:
        repository: where the audit log is.
        rotated_at: when each secret in force was made.
        now: the time, UTC.

    Raises:
        StorageError: the database can't be used.
    """
    for action, done_at in rotated_at.items():
        line = await _newest(repository.audit_log, action)
        if line is None or (done_at is not None and done_at >= datetime.fromisoformat(line.at) - _APART):
            continue
        failed = await _newest(repository.audit_log, "rotation_failed", of=action)
        if failed is None or failed.entry_id < line.entry_id:
            details = (
                f"{action}: the line of {line.at} isn't true of this state folder: the coordinator died before it "
                "was done, the folder couldn't be written, or it is an older copy; what counted before counts "
                "still: rotate again"
            )
            told = WriteAudit(at_s=now.timestamp(), action="rotation_failed", subject="cluster", details=details)
            await repository.apply([told])


async def _newest(audit_log: AuditLog, action: str, of: str = "") -> AuditEntry | None:
    """The newest line of this kind whose details begin so."""
    found = await audit_log.entries(AuditFilter(action=action), before_id=None, n_entries=20)
    return next((line for line in found if line.details.startswith(of)), None)
