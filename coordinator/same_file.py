"""Whether a database's file is still the one that was opened."""

from __future__ import annotations

from pathlib import Path

from protocol.errors import StorageError


class SameFile:
    """Sees whether a file is still there under its name.

    A program that holds a database's file open goes on writing to it when it is moved or deleted, and SQLite makes
    a new, empty one where it finds none: what was acknowledged would be lost.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._identity = self._found()

    def check(self) -> None:
        """Raises StorageError if it isn't. Blocks, for as long as the file system takes to look."""
        if self._found() != self._identity:
            raise StorageError(
                f"the database {self._path} was moved, deleted or replaced while it was in use; nothing is written "
                "until it is back. If it is lost, stop the coordinator and restore a backup"
            )

    def _found(self) -> tuple[int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino
