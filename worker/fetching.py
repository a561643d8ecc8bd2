"""Getting all files of a span: what is on the disk is checked, room made for the rest, a few at a time downloaded.

With a running account of it for people.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from protocol.errors import StorageError
from protocol.ids import FileHash, Revision
from protocol.manifest import ModelFile
from worker.byte_sizes import size_text
from worker.downloads import Downloader, FileSource
from worker.files import FileCache
from worker.sources import Sources

N_DOWNLOADS = 4
"""Files that are downloaded at the same time."""

Progressed = Callable[[str, float], None]
"""Called with a sentence for people, and the share that is done."""
Tell = Callable[[str], None]
"""Called with what begins now, for people."""


@dataclass(slots=True, kw_only=True)
class _Account:
    """How far the files of a span have come. What was there already counts as done."""

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
        self._say(
            f"downloading {self.n_done} of {self.n_files} files, {self._sizes()}"
            f"{', from ' + names if names else ''}; next: load"
        )

    def say_checking(self, n_files: int) -> None:
        self._say(f"checking files that are on the disk ({n_files}), {self._sizes()}; next: download the rest")

    def _sizes(self) -> str:
        n_bytes_done = min(self.n_bytes_done, self.n_bytes)  # what turned out to be wrong comes a second time
        return f"{size_text(n_bytes_done)} of {size_text(self.n_bytes)}"

    def _say(self, text: str) -> None:
        self.progressed(text, min(1.0, self.n_bytes_done / self.n_bytes) if self.n_bytes else 0.0)


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
        tell: Tell,
    ) -> None:
        """Get the files that aren't on the disk. Those that came stay if one fails.

        Raises:
            StorageError: there is no room for them, or they can't be written.
            UnreachableError: nobody gave one of them; in a group if several failed.
        """
        n_bytes = sum(file.size_bytes for file in files)
        account = _Account(n_files=n_held + len(files), n_done=n_held, n_bytes=n_bytes, progressed=progressed)
        present = await self._check_unknown(files, account, tell)
        missing = [file for file in files if file.sha256 not in present]
        if not missing:
            return
        tell(f"downloading {_sum(missing)}")
        account.n_bytes_done += await asyncio.to_thread(self._parts_bytes, missing)
        account.say()
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

    async def _check_unknown(
        self, files: Sequence[ModelFile], account: _Account, tell: Tell
    ) -> Collection[FileHash]:
        """Hash what is on the disk after all: copied there by hand, touched, or its index was lost."""
        unknown = await asyncio.to_thread(
            lambda: [file for file in files if self._cache.has_unchecked(file.sha256)]
        )
        if unknown:
            tell(f"checking what is on the disk: {_sum(unknown)}")
            account.say_checking(len(unknown))
        present = set()
        for file in unknown:
            if await asyncio.to_thread(self._cache.find, file.sha256):
                present.add(file.sha256)
                account.n_bytes_done += file.size_bytes
                account.n_done += 1
                account.say_checking(len(unknown))
        return present

    def _parts_bytes(self, files: Sequence[ModelFile]) -> int:
        """What earlier downloads of the files left; parts that are too long are thrown away."""
        sizes = ((self._cache.part_size(file.sha256), file.size_bytes) for file in files)
        return sum(part for part, whole in sizes if part <= whole)

    def _make_room(self, files: Sequence[ModelFile], keep: Collection[FileHash]) -> None:
        wanted = sum(file.size_bytes - self._cache.part_size(file.sha256) for file in files)
        try:
            self._cache.make_room(wanted, keep)
        except StorageError:
            if not self._cache.forget_parts([file.sha256 for file in files]):
                raise
            self._cache.make_room(wanted, keep)


def _sum(files: Sequence[ModelFile]) -> str:
    """How many, and how large they are."""
    n_bytes = sum(file.size_bytes for file in files)
    n_files = "1 file" if len(files) == 1 else f"{len(files)} files"
    return f"{n_files}, {size_text(n_bytes)}"
