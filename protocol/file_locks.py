"""Files that one process at a time holds, on every system, which lets go of them however the process ends."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock, Timeout

HeldLock = FileLock
"""A lock that is held until its `release`."""


def try_lock(path: Path) -> HeldLock | None:
    """Hold the file at `path`, which is made (0600) if it isn't there; None if somebody holds it. Doesn't wait.

    The file is only for locking: on some systems nobody else can read or write it meanwhile.

    Raises:
        OSError: it can't be made or locked.
    """
    lock = FileLock(path, mode=0o600, thread_local=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return None
    return lock
