"""What people are told while files are got: what is there already is checked, not downloaded, and counts."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from protocol.ids import FileHash
from protocol.manifest import ModelFile
from tests.support.coordinators import running_coordinator
from tests.support.fetching import fetching_into, joined_sources
from tests.support.stored_model import add_model
from worker.byte_sizes import size_text
from worker.fetching import Fetching
from worker.files import FileCache


@dataclass
class Getting:
    """A model's blocks, an empty cache, and what was said."""

    fetching: Fetching
    cache: FileCache
    files: Sequence[ModelFile]
    contents: dict[FileHash, bytes]
    stored: Path
    """The coordinator's own files."""
    said: list[tuple[str, float]] = field(default_factory=list)
    told: list[str] = field(default_factory=list)

    def copy_by_hand(self, file: ModelFile, data: bytes | None = None) -> None:
        path = self.cache.path(file.sha256)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(self.contents[file.sha256] if data is None else data)

    async def run(self) -> None:
        def progressed(text: str, share: float) -> None:
            self.said.append((text, share))

        await self.fetching.download(self.files, n_held=0, keep=(), progressed=progressed, tell=self.told.append)
        assert {file.sha256 for file in self.files} <= set(self.cache.hashes())
        shares = [share for _text, share in self.said]
        assert shares == sorted(shares)
        assert shares[-1] == 1.0


@asynccontextmanager
async def getting(folder: Path) -> AsyncIterator[Getting]:
    async with running_coordinator(folder) as coordinator, aiohttp.ClientSession(auto_decompress=False) as http:
        model = await add_model(coordinator)
        cache = FileCache(folder / "cache")
        sources = await joined_sources(folder, coordinator, http)
        files = tuple({file.sha256: file for file in model.manifest.blocks}.values())
        yield Getting(
            fetching_into(cache, sources, http), cache, files, dict(model.contents), coordinator.state_folder.files
        )


async def test_files_that_were_copied_there_by_hand_are_checked_and_not_downloaded(tmp_path: Path) -> None:
    async with getting(tmp_path) as it:
        shutil.copytree(it.stored / "files", tmp_path / "cache" / "files", dirs_exist_ok=True)
        await it.run()
        assert [line.split(",")[0] for line in it.told] == [f"checking what is on the disk: {len(it.files)} files"]
        assert it.said[0][0].startswith(f"checking files that are on the disk ({len(it.files)}), 0 bytes of ")
        assert not [text for text, _share in it.said if "downloading 0" in text]


async def test_a_copy_with_other_bytes_is_downloaded_and_the_others_count_as_done(tmp_path: Path) -> None:
    async with getting(tmp_path) as it:
        first, second, *_ = it.files
        it.copy_by_hand(first)
        it.copy_by_hand(second, b"x" * second.size_bytes)
        await it.run()
        n_missing = len(it.files) - 1
        assert [line.split(",")[0] for line in it.told] == [
            "checking what is on the disk: 2 files",
            f"downloading {n_missing} files",
        ]
        first_downloading = next(text for text, _share in it.said if text.startswith("downloading"))
        assert first_downloading.startswith(f"downloading 1 of {len(it.files)} files, ")
        assert it.said[-1][0].startswith(f"downloading {len(it.files)} of {len(it.files)} files, ")


async def test_what_an_earlier_download_left_counts_as_done(tmp_path: Path) -> None:
    async with getting(tmp_path) as it:
        (first, *_) = it.files
        it.cache.part_path(first.sha256).write_bytes(it.contents[first.sha256][: first.size_bytes // 2])
        await it.run()
        n_bytes = sum(file.size_bytes for file in it.files)
        assert it.said[0][1] == first.size_bytes // 2 / n_bytes
        assert [line.split(",")[0] for line in it.told] == [f"downloading {len(it.files)} files"]


async def test_no_more_than_all_is_said_to_be_there_when_a_part_turns_out_to_be_wrong(tmp_path: Path) -> None:
    async with getting(tmp_path) as it:
        for file in it.files:
            it.cache.part_path(file.sha256).write_bytes(b"x" * (file.size_bytes - 1))
        await it.run()
        whole = size_text(sum(file.size_bytes for file in it.files))
        assert {text.split(", ")[1].split(";")[0] for text, share in it.said if share == 1.0} == {
            f"{whole} of {whole}"
        }
