"""The files of a model's two ends, fetched from the coordinator by who holds an API key, kept by their hashes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from protocol.disk import storage_errors
from protocol.ends_messages import LoadEnds
from protocol.file_locks import HeldLock, try_lock
from protocol.ids import BlockRange
from protocol.manifest import Manifest, ModelFile
from protocol.tls import COORDINATOR_NAME, client_context
from worker.byte_sizes import size_text
from worker.downloads import Downloader, FileSource
from worker.files import FileCache
from worker.model_folders import ModelFolders

_LOCK_POLL_S = 0.2
"""Another client on this machine may be fetching into the same folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndFiles:
    """Where they are."""

    config_folder: Path
    first: tuple[Path, ...]
    last: tuple[Path, ...]


@asynccontextmanager
async def end_files(
    load: LoadEnds,
    manifest: Manifest,
    ranges: tuple[BlockRange, BlockRange],
    say: Callable[[str], None],
    clock: Callable[[], float],
) -> AsyncIterator[EndFiles]:
    """Fetch what isn't there yet; while the context is open nobody removes the files.

    Raises:
        StorageError: there is no room for them, or they can't be written.
        UnreachableError: the coordinator doesn't give one of them.
    """
    folder = Path(load.folder)
    lock = await _locked(folder)
    try:
        cache = FileCache(folder)
        weights = [manifest.weight_files(blocks) for blocks in ranges]
        await _fetch_missing(load, cache, (*manifest.auxiliary, *weights[0], *weights[1]), say, clock)
        first, last = (tuple(cache.checked_path(file.sha256) for file in files) for files in weights)
        config_folder = ModelFolders(folder / "models", cache).config_folder(load.revision, manifest)
        yield EndFiles(config_folder=config_folder, first=first, last=last)
    finally:
        lock.release()


async def _locked(folder: Path) -> HeldLock:
    """Hold the folder, whoever else uses it; the client that waits for this has the deadline."""
    with storage_errors(folder):
        await asyncio.to_thread(folder.mkdir, mode=0o700, parents=True, exist_ok=True)
        while (lock := try_lock(folder / "lock")) is None:  # noqa: ASYNC110 - another process lets go of it
            await asyncio.sleep(_LOCK_POLL_S)
    return lock


async def _fetch_missing(
    load: LoadEnds,
    cache: FileCache,
    files: Sequence[ModelFile],
    say: Callable[[str], None],
    clock: Callable[[], float],
) -> None:
    missing = {file.sha256: file for file in files if not cache.find(file.sha256)}
    if not missing:
        return
    n_bytes = sum(file.size_bytes for file in missing.values())
    say(f"fetching {size_text(n_bytes)} of the model's first and last blocks, which run on this machine")
    cache.make_room(n_bytes - sum(map(cache.part_size, missing)), keep=[file.sha256 for file in files])
    context = client_context(load.ca_pem)
    sources = [
        FileSource(
            name=f"the coordinator at {url}",
            url=url,
            context=context,
            server_hostname=COORDINATOR_NAME,
            headers={"Authorization": f"Bearer {load.api_key}"},
        )
        for url in load.coordinator_urls
    ]
    async with aiohttp.ClientSession(auto_decompress=False, trust_env=False) as http:
        downloader = Downloader(http, cache, clock)
        for file in missing.values():
            await downloader.fetch(file, sources, lambda _source, _n_bytes: None)
