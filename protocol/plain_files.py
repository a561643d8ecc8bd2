"""Files opened by descriptor, as they are: no link is followed, no program that we start inherits one.

Systems differ in what they have for that; what one lacks is done in another way here.
"""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path


def open_plain(path: Path, flags: int, mode: int = 0o600) -> int:
    """A descriptor of the file, for bytes. OSError: it can't be opened, or is a link (ELOOP)."""
    follows = not hasattr(os, "O_NOFOLLOW")  # Windows, where one needs rights to make a link
    if follows and path.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    for name in ("O_NOFOLLOW", "O_CLOEXEC", "O_BINARY"):
        flags |= getattr(os, name, 0)
    return os.open(path, flags, mode)


def open_without_waiting(path: Path) -> int:
    """Likewise, to read: a pipe or a device that was put there keeps nobody waiting."""
    return open_plain(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))


def read_at(descriptor: int, n_bytes: int, offset: int) -> bytes:
    """Up to so many bytes from there. One thread at a time reads a descriptor. OSError: it can't be read."""
    if sys.platform != "win32" and hasattr(os, "pread"):
        return os.pread(descriptor, n_bytes, offset)
    os.lseek(descriptor, offset, os.SEEK_SET)
    return os.read(descriptor, n_bytes)
