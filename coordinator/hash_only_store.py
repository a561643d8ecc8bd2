"""A store that keeps nothing but hashes: to find out a model's revision without writing the model a second time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from coordinator.file_store import StoredFile
from protocol.ids import FileHash

_ENDLESS_BYTES = 2**62


class HashOnlyStore:
    """As `FileStore` for whoever packs a model into it."""

    root = Path()

    def lock(self) -> AbstractContextManager[None]:
        """Nobody else sees it."""
        return nullcontext()

    def free_bytes(self) -> int:
        """Room without end."""
        return _ENDLESS_BYTES

    def total_size(self) -> int:
        """Nothing is kept."""
        return 0

    def remove(self, _sha256: FileHash) -> bool:
        """There is nothing to remove."""
        return False

    def put(self, data: bytes) -> StoredFile:
        """Hash a small file."""
        return StoredFile(sha256=FileHash(hashlib.sha256(data).hexdigest()), size_bytes=len(data), is_new=False)

    @contextmanager
    def writer(self) -> Iterator[Hasher]:
        """A file to hash."""
        yield Hasher()


class Hasher:
    """One file, hashed as it is written. Made by `HashOnlyStore.writer`."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self.size_bytes = 0

    def write(self, data: bytes | memoryview) -> None:
        """Go on with `data`."""
        view = memoryview(data).cast("B")
        self._hash.update(view)
        self.size_bytes += len(view)

    def commit(self) -> StoredFile:
        """What would have been stored."""
        return StoredFile(sha256=FileHash(self._hash.hexdigest()), size_bytes=self.size_bytes, is_new=False)
