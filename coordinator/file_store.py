"""Model files on disk under the names of their hashes: written once, never changed, the same bytes stored once.

    ROOT/files/ab/abcdef...   one file, named by its SHA-256
    ROOT/partial/*.part       files being written; whoever writes one holds its *.lock
    ROOT/lock                 held while a model is added or unreferenced files are removed

Everything here blocks: call it from a thread where there is an event loop. It knows no models and no manifests.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import sys
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from protocol.disk import storage_error, storage_errors
from protocol.error_forms import repeated
from protocol.errors import ConflictError, NotFoundError
from protocol.file_locks import HeldLock, try_lock
from protocol.ids import FileHash

_NEW_FILE = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """What was stored. `is_new` is false if the same bytes were there already."""

    sha256: FileHash
    size_bytes: int
    is_new: bool


class FileStore:
    """The content-addressed files under one folder, which is made (0700) if it isn't there.

    Several processes may use one folder at once. Reading needs no lock, since a file appears whole or not at all.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._files = root / "files"
        self._partial = root / "partial"
        self._is_locked = False
        self._lock_guard = threading.RLock()
        with storage_errors(root):
            for folder in (root, self._files, self._partial):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._remove_leftovers()

    def path(self, sha256: FileHash) -> Path:
        """Where the file is or would be.

        Raises:
            NotFoundError: not a hash, so that no other path can be named.
        """
        if len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
            raise NotFoundError(f"{repeated(sha256)} is not a file's SHA-256 (64 lower-case hex digits)")
        return self._files / sha256[:2] / sha256

    def has(self, sha256: FileHash) -> bool:
        """Whether the file is there."""
        return self.path(sha256).is_file()

    def size(self, sha256: FileHash) -> int:
        """Size of the file in bytes; NotFoundError if there is none."""
        try:
            return self.path(sha256).stat().st_size
        except FileNotFoundError as exc:
            raise NotFoundError(f"there is no file {sha256}") from exc

    def open(self, sha256: FileHash) -> BinaryIO:
        """The file opened for reading at any position, unbuffered; the caller closes it.

        Raises:
            NotFoundError: there is no such file.
            StorageError: it can't be read.
        """
        path = self.path(sha256)
        try:
            return path.open("rb", buffering=0)
        except FileNotFoundError as exc:
            raise NotFoundError(f"there is no file {sha256}") from exc
        except OSError as exc:
            raise storage_error(path, exc) from exc

    def hashes(self) -> tuple[FileHash, ...]:
        """Every file there is, in order."""
        return tuple(FileHash(path.name) for path in sorted(self._files.glob("??/*")))

    def total_size(self) -> int:
        """Bytes of all files together."""
        return sum(self.size(sha256) for sha256 in self.hashes())

    def free_bytes(self) -> int:
        """Free space on the disk that the folder is on."""
        with storage_errors(self.root):
            return shutil.disk_usage(self.root).free

    def remove(self, sha256: FileHash) -> bool:
        """Remove the file; false if it wasn't there. Whoever has it open can read on."""
        path = self.path(sha256)
        with storage_errors(path):
            try:
                path.unlink()
            except FileNotFoundError:
                return False
            with suppress(OSError):  # other files are in the folder, or just arrived
                path.parent.rmdir()
        return True

    def remove_unreferenced(self, referenced: Collection[FileHash]) -> tuple[int, int]:
        """Remove every file that isn't in `referenced`; returns how many, and their bytes.

        Raises:
            ConflictError: a model is being added, whose files nothing names yet.
        """
        keep = frozenset(referenced)
        with self.lock():
            self._remove_leftovers()
            doomed = [sha256 for sha256 in self.hashes() if sha256 not in keep]
            n_bytes = sum(self.size(sha256) for sha256 in doomed)
            for sha256 in doomed:
                self.remove(sha256)
        return len(doomed), n_bytes

    def put(self, data: bytes) -> StoredFile:
        """Store a small file that is in memory."""
        with self.writer() as writer:
            writer.write(data)
            return writer.commit()

    @contextmanager
    def writer(self) -> Iterator[FileWriter]:
        """A new file to write to; what isn't committed is removed."""
        writer = FileWriter(self)
        try:
            yield writer
        finally:
            writer.close()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from adding models and from removing unreferenced files meanwhile.

        Held by whoever adds a model, from the first file until the manifest is recorded. The same thread may take
        it again within, through the same `FileStore`.

        Raises:
            ConflictError: somebody else holds it.
        """
        if not self._lock_guard.acquire(blocking=False):
            raise _busy(self.root)
        try:
            if self._is_locked:  # by this thread, further out
                yield
                return
            with storage_errors(self.root):
                held = try_lock(self.root / "lock")
            if held is None:
                raise _busy(self.root)
            try:
                self._is_locked = True
                yield
            finally:
                self._is_locked = False
                held.release()
        finally:
            self._lock_guard.release()

    def new_partial(self) -> tuple[int, Path, HeldLock]:
        """An empty file on the files' disk, and the lock that says who writes it; without, it is a leftover."""
        with storage_errors(self._partial):
            while True:
                path = self._partial / f"{secrets.token_hex(8)}.part"
                held = try_lock(path.with_suffix(".lock"))
                if held is not None:  # else somebody who cleans up was faster
                    return os.open(path, _NEW_FILE, 0o600), path, held

    def _remove_leftovers(self) -> None:
        """Remove what interrupted writers left. A living writer holds its file's lock and keeps it."""
        for path in self._partial.glob("*.part"):
            if not path.with_suffix(".lock").exists():
                path.unlink(missing_ok=True)
        for path in self._partial.glob("*.lock"):
            held = try_lock(path)
            if held is not None:
                path.with_suffix(".part").unlink(missing_ok=True)
                _give_up(held, path)


class FileWriter:
    """One file on its way into the store, hashed as it is written. Made by `FileStore.writer`."""

    def __init__(self, store: FileStore) -> None:
        self._store = store
        self._fd, self._path, self._lock = store.new_partial()
        self._hash = hashlib.sha256()
        self._is_open = True
        self.size_bytes = 0

    def write(self, data: bytes | memoryview) -> None:
        """Append `data`; StorageError if the disk is full or can't be written."""
        view = memoryview(data).cast("B")
        self._hash.update(view)
        with storage_errors(self._path, n_written=self.size_bytes):
            while view:
                n_written = os.write(self._fd, view)
                self.size_bytes += n_written
                view = view[n_written:]

    def commit(self) -> StoredFile:
        """Put the file in its place, on disk for good, and close it; StorageError if that can't be done.

        A file that is there already is replaced: it has the right name, but may have been cut or altered since.
        """
        sha256 = FileHash(self._hash.hexdigest())
        target = self._store.path(sha256)
        is_new = not target.is_file()
        with storage_errors(self._path, n_written=self.size_bytes):
            os.fsync(self._fd)
            target.parent.mkdir(mode=0o700, exist_ok=True)
            self._close_file()  # Windows moves no file that is open
            self._path.replace(target)
            _sync_folder(target.parent)
        self.close()
        return StoredFile(sha256=sha256, size_bytes=self.size_bytes, is_new=is_new)

    def close(self) -> None:
        """Close, and remove what wasn't committed. Can be called again."""
        if self._is_open:
            self._is_open = False
            self._close_file()
            self._path.unlink(missing_ok=True)
            _give_up(self._lock, self._path.with_suffix(".lock"))

    def _close_file(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _give_up(held: HeldLock, path: Path) -> None:
    """Let go of a lock, and remove its file, which nobody else waits for."""
    held.release()
    with suppress(OSError):
        path.unlink(missing_ok=True)


def _busy(root: Path) -> ConflictError:
    return ConflictError(f"somebody else is adding or removing a model in {root}; try again when it is done")


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` last through a power cut."""
    if sys.platform != "win32":  # where a folder can't be opened
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
