"""What an operator is told when the disk under the model files is full, closed to us or broken."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from protocol.errors import StorageError

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_PERMISSION = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def storage_errors(path: Path, *, n_written: int = 0) -> Iterator[None]:
    """Turn an OSError into a StorageError that says what the disk has left."""
    try:
        yield
    except OSError as exc:
        raise storage_error(path, exc, n_written=n_written) from exc


def storage_error(path: Path, exc: OSError, *, n_written: int = 0) -> StorageError:
    """The error that tells an operator what to do about `exc`."""
    if exc.errno in _NO_SPACE:
        return StorageError(
            f"no room on the disk of {path.parent}: {n_written:,} bytes of a file were written and "
            f"{_free_or_unknown(path.parent)} are free ({os.strerror(exc.errno)}); "
            "make room, or choose another state folder"
        )
    if exc.errno in _NO_PERMISSION:
        return StorageError(
            f"{path} can't be used by this user ({os.strerror(exc.errno)}); "
            "change its owner or permissions, or choose another state folder"
        )
    return StorageError(f"{path} can't be used: {exc.strerror or exc}")


def _free_or_unknown(folder: Path) -> str:
    with suppress(OSError):
        return f"{shutil.disk_usage(folder).free:,} bytes"
    return "an unknown number of bytes"
