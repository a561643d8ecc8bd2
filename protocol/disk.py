"""Small files that are there whole or not at all, and what people are told when a disk is full or closed to us."""

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
_IN_THE_WAY = (errno.EEXIST, errno.ENOTDIR)
_OTHER_FOLDER = "name another state folder (--state)"


def write_atomically(path: Path, data: bytes) -> None:
    """Write a private file (0600) so that it is there whole or not at all, after a power cut too.

    One at a time writes a file: whoever calls this sees to that. Who is killed meanwhile leaves `partial_of(path)`.
    """
    partial = partial_of(path)
    partial.unlink(missing_ok=True)  # it may be open to others, or lead elsewhere
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)  # what is there now is another's
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise


def partial_of(path: Path) -> Path:
    """Where a file is written before it takes the place of `path`."""
    return path.with_name(path.name + ".new")


@contextmanager
def storage_errors(path: Path, *, n_written: int | None = None) -> Iterator[None]:
    """Turn an OSError at `path` into a StorageError that says what to do, and what the disk has left."""
    try:
        yield
    except OSError as exc:
        raise storage_error(path, exc, n_written=n_written) from exc


def storage_error(
    path: Path, exc: OSError, *, n_written: int | None = None, instead: str = _OTHER_FOLDER
) -> StorageError:
    """The error that tells people what to do about `exc`; `instead`: how to have another place used."""
    if exc.errno in _NO_SPACE:
        written = f"{n_written:,} bytes of a file were written and " if n_written is not None else ""
        return StorageError(
            f"no room on the disk of {path.parent}: {written}{_free_or_unknown(path.parent)} are free "
            f"({os.strerror(exc.errno)}); make room, or {instead}"
        )
    if exc.errno in _NO_PERMISSION:
        return StorageError(
            f"{path} can't be used by this user ({os.strerror(exc.errno)}): change its owner or permissions, or "
            f"{instead}"
        )
    if exc.errno in _IN_THE_WAY:
        return StorageError(f"{path} can't be used: there is a file in its place, or of a folder above; {instead}")
    return StorageError(f"{path} can't be used ({exc.strerror or exc}): mend that, or {instead}")


def _free_or_unknown(folder: Path) -> str:
    with suppress(OSError):
        return f"{shutil.disk_usage(folder).free:,} bytes"
    return "an unknown number of bytes"
