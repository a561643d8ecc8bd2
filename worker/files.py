"""Model files on this worker's disk under the names of their hashes, within a limit.

    FOLDER/files/ab/abcdef...   one file, named by its SHA-256
    FOLDER/parts/abcdef....part   what has come of a download so far
    FOLDER/quantised/           what was made of such files (see `worker.quantised_cache`), within the same limit
    FOLDER/index.json           size, modification time and last use of each file whose hash was checked here

A file counts as checked while its size and modification time are those of the index; else its hash is taken again.
Everything here blocks: call it from a thread. One process uses a folder (the state folder's lock sees to that).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

import msgspec
import structlog

from protocol.disk import storage_errors, write_atomically
from protocol.errors import NotFoundError, StorageError, UntrustedFileError
from protocol.ids import FileHash
from worker.byte_sizes import size_text
from worker.quantised_cache import QuantisedCache

log = structlog.get_logger(__name__)

_DISK_RESERVE_BYTES = 64 * 2**20
"""Free space that downloads leave on the disk."""
_HASH_CHUNK_BYTES = 4 * 2**20


class _Entry(msgspec.Struct, kw_only=True):
    size_bytes: int
    mtime_ns: int
    last_use_s: float


class FileCache:
    """The checked files under one folder, which is made if it isn't there."""

    def __init__(self, folder: Path, *, limit_bytes: int | None = None) -> None:
        self._folder = folder
        self._limit_bytes = limit_bytes
        self._guard = threading.RLock()
        with storage_errors(folder):
            for sub_folder in (folder / "files", folder / "parts"):
                sub_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._entries = self._read_index()
        self.quantised = QuantisedCache(folder / "quantised", self._room_bytes)

    def path(self, sha256: FileHash) -> Path:
        """Where the file is or would be.

        Raises:
            NotFoundError: not a hash, so that no other path can be named.
        """
        if len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
            raise NotFoundError(f"{sha256[:80]!r} is not a file's SHA-256 (64 lower-case hex digits)")
        return self._folder / "files" / sha256[:2] / sha256

    def part_path(self, sha256: FileHash) -> Path:
        """Where a download of the file is collected."""
        return self._folder / "parts" / f"{self.path(sha256).name}.part"

    def hashes(self) -> tuple[FileHash, ...]:
        """The files that were checked and haven't been touched since."""
        with self._guard:
            return tuple(sha256 for sha256 in self._entries if self._is_unchanged(sha256))

    def total_size(self) -> int:
        """Bytes of all checked files."""
        with self._guard:
            return sum(entry.size_bytes for entry in self._entries.values())

    def checked_path(self, sha256: FileHash) -> Path:
        """Where the file is, its bytes being what its name says; hashed again if it was touched.

        Raises:
            NotFoundError: it isn't here, or was altered (then it is removed).
        """
        path = self.path(sha256)
        with self._guard:
            if self._is_unchanged(sha256):
                return path
        self._recheck(sha256)
        return path

    def find(self, sha256: FileHash) -> bool:
        """Whether the file is here, hashed again if need be."""
        try:
            self.checked_path(sha256)
        except NotFoundError:
            return False
        return True

    def has_unchecked(self, sha256: FileHash) -> bool:
        """Whether something has its name whose hash has to be taken before it can be used.

        A file that is gone counts no longer as stored.
        """
        with self._guard:
            if self._is_unchanged(sha256):
                return False
            if os.path.lexists(self.path(sha256)):
                return True
            self._entries.pop(sha256, None)
            return False

    def part_size(self, sha256: FileHash) -> int:
        """Bytes of the file that an earlier download left."""
        try:
            return self.part_path(sha256).stat().st_size
        except OSError:  # whatever is wrong with it, opening it will say so
            return 0

    def forget_parts(self, keep: Collection[FileHash]) -> int:
        """Remove the parts of all other files; returns how many."""
        kept = {self.part_path(sha256) for sha256 in keep}
        with storage_errors(self._folder):
            doomed = [part for part in (self._folder / "parts").iterdir() if part not in kept]
            for part in doomed:
                part.unlink(missing_ok=True)
        return len(doomed)

    def admit(self, sha256: FileHash, n_bytes: int, now_s: float) -> Path:
        """Give the complete, hashed part its final name.

        Raises:
            UntrustedFileError: the part hasn't the size that it must have.
            StorageError: it can't be moved.
        """
        part, path = self.part_path(sha256), self.path(sha256)
        with self._guard, storage_errors(path):
            if part.stat().st_size != n_bytes:
                raise UntrustedFileError(f"{part.name} has {part.stat().st_size} bytes instead of {n_bytes}")
            path.parent.mkdir(mode=0o700, exist_ok=True)
            part.chmod(0o400)
            part.replace(path)
            self._remember(sha256, now_s)
        return path

    def put(self, sha256: FileHash, data: bytes, now_s: float) -> Path:
        """Store a small file that is in memory; its hash must have been checked."""
        part = self.part_path(sha256)
        with self._guard, storage_errors(part):
            part.unlink(missing_ok=True)
            write_atomically(part, data)
        return self.admit(sha256, len(data), now_s)

    def touch(self, hashes: Collection[FileHash], now_s: float) -> None:
        """Note that the files are used now: they are the last to go."""
        with self._guard:
            for sha256 in hashes:
                if sha256 in self._entries:
                    self._entries[sha256].last_use_s = now_s
            self._write_index()

    def make_room(self, n_bytes: int, keep: Collection[FileHash]) -> int:
        """Remove least recently used files, never those in `keep`, until `n_bytes` more fit; returns how many.

        Quantised ones, which can be made anew, go first.

        Raises:
            StorageError: they don't fit even then; no model file was removed.
        """
        with self._guard, storage_errors(self._folder):
            wanting = n_bytes - self._room_bytes()
            if wanting > 0:
                wanting -= self.quantised.make_way(wanting)
            if wanting <= 0:
                return 0
            idle = sorted((e.last_use_s, sha256) for sha256, e in self._entries.items() if sha256 not in keep)
            idle_bytes = sum(self._entries[sha256].size_bytes for _, sha256 in idle)
            if idle_bytes < wanting:
                raise StorageError(self._no_room(n_bytes, idle_bytes))
            n_removed = 0
            for _, sha256 in idle:
                if wanting <= 0:
                    break
                wanting -= self._entries[sha256].size_bytes
                self.remove(sha256)
                n_removed += 1
            return n_removed

    def remove(self, sha256: FileHash) -> None:
        """Remove the file; who has it open can read on."""
        with self._guard, storage_errors(self._folder):
            self.path(sha256).unlink(missing_ok=True)
            if self._entries.pop(sha256, None) is not None:
                log.info("file_removed", sha256=sha256)
            self._write_index()

    def _room_bytes(self) -> int:
        """How many bytes may still be stored, parts counted as stored."""
        on_disk = shutil.disk_usage(self._folder).free - _DISK_RESERVE_BYTES
        if self._limit_bytes is None:
            return on_disk
        used = self.total_size() + self.quantised.total_size() + self._parts_bytes()
        return min(on_disk, self._limit_bytes - used)

    def _parts_bytes(self) -> int:
        total = 0
        for part in (self._folder / "parts").iterdir():
            with suppress(FileNotFoundError):
                total += part.stat().st_size
        return total

    def _no_room(self, n_bytes: int, idle_bytes: int) -> str:
        free = shutil.disk_usage(self._folder).free
        limit = "" if self._limit_bytes is None else f", the cache's limit is {size_text(self._limit_bytes)}"
        return (
            f"{size_text(n_bytes)} of model files don't fit into {self._folder}: {size_text(free)} are free on the "
            f"disk{limit}, and only {size_text(idle_bytes)} of older files could go; free some space, or raise "
            "--cache-size"
        )

    def _is_unchanged(self, sha256: FileHash) -> bool:
        entry = self._entries.get(sha256)
        if entry is None:
            return False
        try:
            status = self.path(sha256).lstat()
        except OSError:
            return False
        return (status.st_size, status.st_mtime_ns) == (entry.size_bytes, entry.mtime_ns)

    def _recheck(self, sha256: FileHash) -> None:
        path = self.path(sha256)
        try:
            is_file = path.is_file() and not path.is_symlink()
            before = path.stat() if is_file else None
            actual = file_sha256(path) if is_file else None
        except OSError as exc:
            raise NotFoundError(f"file {sha256} can't be read: {exc.strerror or exc}") from exc
        with self._guard, storage_errors(path):
            if before is not None and actual == sha256 and _mtime_ns(path) == before.st_mtime_ns:
                entry = self._entries.get(sha256)
                self._remember(sha256, entry.last_use_s if entry else 0.0)
                return
            if actual is not None:
                log.warning("file_altered", sha256=sha256, path=str(path))
            self.remove(sha256)
        raise NotFoundError(f"file {sha256} isn't here, or was altered on the disk")

    def _remember(self, sha256: FileHash, last_use_s: float) -> None:
        status = self.path(sha256).stat()
        self._entries[sha256] = _Entry(
            size_bytes=status.st_size, mtime_ns=status.st_mtime_ns, last_use_s=last_use_s
        )
        self._write_index()

    def _read_index(self) -> dict[FileHash, _Entry]:
        try:
            return msgspec.json.decode((self._folder / "index.json").read_bytes(), type=dict[FileHash, _Entry])
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            log.warning("file_index_lost", next_step="files are hashed again when they are needed")
            return {}

    def _write_index(self) -> None:
        with storage_errors(self._folder):
            write_atomically(self._folder / "index.json", msgspec.json.encode(self._entries))


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _mtime_ns(path: Path) -> int | None:
    """None: the file was removed meanwhile."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None
