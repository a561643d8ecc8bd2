"""Getting all files of a span: room for them first, a few at a time, with a running account of it for people."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from protocol.errors import StorageError
from protocol.ids import FileHash, Revision
from protocol.manifest import ModelFile
from worker.downloads import Downloader, FileSource
from worker.files import FileCache
from worker.sources import Sources

N_DOWNLOADS = 4
"""Files that are downloaded at the same time."""

Progressed = Callable[[str, float], None]
"""Called with a sentence for people, and the share that is done."""


@dataclass(slots=True, kw_only=True)
class _Account:
    """How far the download of a span has come."""

    n_files: int
    n_done: int
    n_bytes: int
    progressed: Progressed
    n_bytes_done: int = 0
    sources: dict[str, None] = field(default_factory=dict)

    def add(self, source: FileSource, n_bytes: int) -> None:
        self.n_bytes_done += n_bytes
        self.sources[source.name] = None
        self.say()

    def done(self) -> None:
        self.n_done += 1
        self.say()

    def say(self) -> None:
        names = ", ".join(self.sources)
        self.progressed(
            f"downloading {self.n_done} of {self.n_files} files, {self.n_bytes_done / 1e6:,.1f} of "
            f"{self.n_bytes / 1e6:,.1f} MB{', from ' + names if names else ''}; next: load",
            min(1.0, self.n_bytes_done / self.n_bytes) if self.n_bytes else 0.0,
        )


class Fetching:
    """Files into the cache, and manifests."""

    def __init__(
        self, *, cache: FileCache, downloader: Downloader, sources: Sources, clock: Callable[[], float]
    ) -> None:
        self._cache = cache
        self._downloader = downloader
        self._sources = sources
        self._clock = clock

    def held(self) -> tuple[FileHash, ...]:
        """Files in the cache that were checked. Blocks."""
        return self._cache.hashes()

    def paths(self, files: Sequence[ModelFile]) -> tuple[Path, ...]:
        """Where the files are, checked again if they were touched, and noted as used now. Blocks.

        Raises:
            NotFoundError: one isn't there any more.
        """
        found = tuple(self._cache.checked_path(file.sha256) for file in files)
        self._cache.touch([file.sha256 for file in files], self._clock())
        return found

    async def manifest(self, revision: Revision) -> bytes:
        """A manifest as the coordinator sends it."""
        return await self._sources.manifest(revision)

    async def download(
        self,
        files: Sequence[ModelFile],
        *,
        n_held: int,
        keep: Collection[FileHash],
        progressed: Progressed,
    ) -> None:
        """Get the files. Those that came stay if one fails.

        Raises:
            StorageError: there is no room for them, or they can't be written.
            UnreachableError: nobody gave one of them; in a group if several failed.
        """
        n_bytes = sum(file.size_bytes for file in files)
        account = _Account(n_files=n_held + len(files), n_done=n_held, n_bytes=n_bytes, progressed=progressed)
        account.say()
        present = await asyncio.to_thread(self._present, files)
        missing = [file for file in files if file.sha256 not in present]
        await asyncio.to_thread(self._make_room, missing, keep)
        sources = await self._sources.of([file.sha256 for file in missing])
        slots = asyncio.Semaphore(N_DOWNLOADS)

        async def fetch(file: ModelFile) -> None:
            async with slots:
                await self._downloader.fetch(file, sources[file.sha256], account.add, self._sources.report_bad)
            account.done()

        async with asyncio.TaskGroup() as tasks:
            for file in missing:
                tasks.create_task(fetch(file), name=f"download-{file.name}")

    def _present(self, files: Sequence[ModelFile]) -> set[FileHash]:
        """Files that are on the disk after all: their index was lost, or they were touched."""
        return {file.sha256 for file in files if self._cache.find(file.sha256)}

    def _make_room(self, files: Sequence[ModelFile], keep: Collection[FileHash]) -> None:
        wanted = sum(file.size_bytes - self._cache.part_size(file.sha256) for file in files)
        try:
            self._cache.make_room(wanted, keep)
        except StorageError:
            if not self._cache.forget_parts([file.sha256 for file in files]):
                raise
            self._cache.make_room(wanted, keep)
