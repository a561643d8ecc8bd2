"""Rotations of secrets that the audit log has and the state folder hasn't: found at the start, and said in the log.

The act is in the log before it is done (`secret_api`), so whoever dies in between leaves a line that isn't true.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta

from coordinator.audit_log import AuditFilter, AuditLog
from coordinator.policy.effects import WriteAudit
from coordinator.repository import Repository
from coordinator.secret_files import Rotation
from protocol.admin_rest import AuditEntry

_APART = timedelta(seconds=1)
"""A rotation and its line in the log are dated one after the other."""


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
                "was done, or the folder is an older copy; what counted before counts still: rotate again"
            )
            told = WriteAudit(at_s=now.timestamp(), action="rotation_failed", subject="cluster", details=details)
            await repository.apply([told])


async def _newest(audit_log: AuditLog, action: str, of: str = "") -> AuditEntry | None:
    """The newest line of this kind whose details begin so."""
    found = await audit_log.entries(AuditFilter(action=action), before_id=None, n_entries=20)
    return next((line for line in found if line.details.startswith(of)), None)
