"""Whether a database's file is still the one that was opened, and what is done for one that isn't."""

from __future__ import annotations

import os
import sqlite3
import threading
from contextlib import suppress
from pathlib import Path

from sqlalchemy import Engine, event
from sqlalchemy.ext.asyncio import AsyncEngine

from protocol.errors import StorageError

_WITHOUT_OPENING = getattr(os, "O_PATH", None)
"""Linux's way to hold on to a file without opening it: who closes one that is open lets go of SQLite's locks."""


class SameFile:
    """Sees whether a file is still there under its name. For threads: whatever it does waits for the file system.

    A program that holds a database's file open goes on writing to it when it is moved or deleted, and SQLite makes
    a new, empty one where it finds none: what was acknowledged would be lost. So would be what the write-ahead log
    holds, which stays behind when the file is moved alone; and at the next start SQLite would replay it onto
    whatever file has the name by then, an older copy for instance. So a file that is gone is given it at once; but
    not one that was deleted, as by a move to another disk: the log is all there is then, so it stays for when the
    file is back, and is put aside from another one that has its name.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._path = Path(engine.url.database or "")
        self._log = Path(f"{self._path}-wal")
        self._aside: Path | None = None
        """Where the log was put."""
        self._identity = self._found()
        self._one_at_a_time = threading.Lock()
        self._held: sqlite3.Connection | None = None
        """A connection of before the file was gone: one that is opened then would be to another file."""
        self._place: int | None = None
        """The file's descriptor, which tells whether it is deleted; None where the system has no such thing."""
        event.listen(engine.sync_engine, "engine_disposed", self._let_go)

    def check(self) -> None:
        """Raises StorageError if it isn't. Blocks, for as long as the file system takes to look."""
        if self._found() != self._identity:
            self._see_to_log()
            aside = f". What was written to it last is in {self._aside}" if self._aside is not None else ""
            raise StorageError(
                f"the database {self._path} was moved, deleted or replaced while it was in use; nothing is written "
                f"until it is back. If it is lost, stop the coordinator and restore a backup{aside}"
            )
        if self._held is None:
            self._hold()

    def _hold(self) -> None:
        # the transaction that is to follow says what is wrong
        with self._one_at_a_time, suppress(sqlite3.Error, OSError):
            if self._held is None:
                self._held = self._connected()

    def _connected(self) -> sqlite3.Connection | None:
        """A connection to the file that was opened, not to one that was put in its place a moment ago."""
        where = f"{self._path.absolute().as_uri()}?mode=rw"  # never makes a file
        held = sqlite3.connect(where, uri=True, timeout=0.0, check_same_thread=False)
        try:
            held.execute("PRAGMA schema_version").fetchone()  # opens the log, which may be moved too
            place = None if _WITHOUT_OPENING is None else os.open(self._path, _WITHOUT_OPENING | os.O_CLOEXEC)
        except BaseException:
            held.close()
            raise
        self._place = place
        if self._found() == self._identity:
            return held
        held.close()
        self._forget_place()
        return None

    def _see_to_log(self) -> None:
        """Move what the log holds into the file that was opened; where somebody is in it, the next look does so."""
        with self._one_at_a_time, suppress(sqlite3.Error, OSError):
            if self._held is None:
                return
            if not self._is_deleted():
                self._held.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            elif self._found() is not None and self._aside is None:
                self._aside = self._log.replace(self._log.with_name(self._log.name + ".left"))

    def _is_deleted(self) -> bool:
        return self._place is not None and os.fstat(self._place).st_nlink == 0

    def _let_go(self, _engine: Engine) -> None:
        """With the engine's connections, and as these it would be made anew for whoever goes on."""
        with self._one_at_a_time:
            if self._held is not None:
                self._held.close()
                self._held = None
            self._forget_place()

    def _forget_place(self) -> None:
        if self._place is not None:
            os.close(self._place)
            self._place = None

    def _found(self) -> tuple[int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino
