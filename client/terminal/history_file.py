"""What a person typed in earlier chats, in a file of their own: kept for the arrow keys, within a size."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from prompt_toolkit.history import FileHistory, History, InMemoryHistory

from protocol.disk import storage_error, write_atomically

MAX_HISTORY_BYTES = 2**20
"""Some ten thousand messages; what is older goes."""
_ENTRY_BEGINS = b"\n# "
_OTHER_FILE = "begin the chat with --no-history"


class KeptHistory(FileHistory):
    """A history whose file may stop to be writable: the chat goes on without it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._path = path
        self.failure: str | None = None
        """Why it couldn't be written, for people, until somebody takes it away."""
        self._has_failed = False

    def store_string(self, string: str) -> None:
        """Add one message, if that is possible."""
        try:
            _make_private(self._path)  # it may have been taken away meanwhile
            super().store_string(string)
        except OSError as exc:
            if not self._has_failed:
                self._has_failed, self.failure = True, _failure(self._path, exc)


def opened_history(path: Path | None) -> tuple[History, str | None]:
    """The history of a file, which is made if it isn't there; and why there is none, if so. Blocks."""
    if path is None:
        return InMemoryHistory(), None
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _make_private(path)
        _shorten(path)
    except OSError as exc:
        return InMemoryHistory(), _failure(path, exc)
    return KeptHistory(path), None


def _make_private(path: Path) -> None:
    """Make the file, for this user alone, if it isn't there."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))


def _shorten(path: Path) -> None:
    """Keep the later half of a file that has become too long, from the beginning of an entry."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        if size <= MAX_HISTORY_BYTES:
            return
        file.seek(size - MAX_HISTORY_BYTES // 2)
        kept = file.read(MAX_HISTORY_BYTES)
    begins = kept.find(_ENTRY_BEGINS)
    with suppress(FileNotFoundError, FileExistsError):  # another chat that begins now does the same
        write_atomically(path, kept[begins:] if begins >= 0 else b"")


def _failure(path: Path, exc: OSError) -> str:
    return f"what you type is not kept for later chats: {storage_error(path, exc, instead=_OTHER_FILE).message}"
