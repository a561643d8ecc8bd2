"""Getting one model file: from the first source that sends the right bytes, going on where an earlier try stopped.

A source may be slow, silent, wrong or hostile; the bytes are hashed as they come and get a final name only when the
hash is the file's. Hashing and writing happen in threads.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import ssl
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import aiohttp
import structlog

from protocol.errors import (
    BrigadeError,
    StorageError,
    TooLargeError,
    UnreachableError,
    UntrustedFileError,
    error_fields,
)
from protocol.manifest import ModelFile
from worker.files import FileCache, storage_errors
from worker.http_answers import error_of, read_body

log = structlog.get_logger(__name__)

STALL_S = 10.0
"""Without a single byte for so long, a source is given up."""
_PIECE_BYTES = 2**20
_PIECE_S = 60.0
"""For one piece: a source that drips is given up too."""
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSource:
    """Somebody who serves `GET {url}/v1/files/{sha256}`."""

    name: str
    """For people: a worker's id, or `the coordinator`."""
    url: str
    context: ssl.SSLContext
    server_hostname: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


class Downloader:
    """Downloads into a cache."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        cache: FileCache,
        clock: Callable[[], float],
        *,
        stall_s: float = STALL_S,
    ) -> None:
        self._session = session
        self._cache = cache
        self._clock = clock
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=stall_s, sock_read=stall_s)

    async def fetch(
        self, file: ModelFile, sources: Sequence[FileSource], on_bytes: Callable[[FileSource, int], None]
    ) -> Path:
        """Get the file from one of the sources, in order; `on_bytes` hears of every piece.

        There is room for it (`FileCache.make_room`), and nobody else fetches it at the same time.

        Raises:
            StorageError: it can't be written.
            UnreachableError: no source gave it; the message has each one's fault.
        """
        faults: list[str] = []
        for source in sources:
            try:
                return await self._fetch_from(source, file, on_bytes)
            except StorageError as exc:
                if not isinstance(exc.__cause__, OSError):  # the source's disk, not ours
                    faults.append(f"{source.name}: {exc.message}")
                    continue
                raise
            except BrigadeError as exc:
                log.warning("source_failed", source=source.name, file=file.name, **error_fields(exc))
                faults.append(f"{source.name}: {exc.message}")
        raise UnreachableError(f"{file.name} can't be had: " + ("; ".join(faults) or "nobody has it"))

    async def _fetch_from(
        self, source: FileSource, file: ModelFile, on_bytes: Callable[[FileSource, int], None]
    ) -> Path:
        """Resume; if the whole then has the wrong hash, the earlier part may be at fault: once more from 0."""
        part = _Part(self._cache.part_path(file.sha256), file.size_bytes)
        try:
            await asyncio.to_thread(part.open)
            was_resumed = part.n_bytes > 0
            await self._collect(source, file, part, on_bytes)
            if was_resumed and part.sha256() != file.sha256:
                await asyncio.to_thread(part.restart)
                await self._collect(source, file, part, on_bytes)
            if part.sha256() != file.sha256:
                await asyncio.to_thread(part.restart)
                raise UntrustedFileError(f"{source.name} sent other bytes for {file.name} than its hash says")
            await asyncio.to_thread(part.sync)
        finally:
            await asyncio.to_thread(part.close)
        return await asyncio.to_thread(self._cache.admit, file.sha256, file.size_bytes, self._clock())

    async def _collect(
        self, source: FileSource, file: ModelFile, part: _Part, on_bytes: Callable[[FileSource, int], None]
    ) -> None:
        if part.n_bytes == file.size_bytes:
            return
        try:
            async with self._session.get(
                f"{source.url}/v1/files/{file.sha256}",
                headers={**source.headers, "Range": f"bytes={part.n_bytes}-", "Accept-Encoding": "identity"},
                ssl=source.context,
                server_hostname=source.server_hostname,
                timeout=self._timeout,
                allow_redirects=False,
            ) as response:
                if response.status not in (200, 206):
                    raise error_of(response, await read_body(response))
                if response.status == 200:
                    await asyncio.to_thread(part.restart)
                else:
                    _check_range(response, part.n_bytes, file)
                await self._read_pieces(source, file, response, part, on_bytes)
        except TimeoutError as exc:
            raise UnreachableError(f"no more bytes came from {source.name} at byte {part.n_bytes}") from exc
        except aiohttp.ClientError as exc:
            raise UnreachableError(f"{source.name} broke off at byte {part.n_bytes}: {exc}") from exc

    async def _read_pieces(
        self,
        source: FileSource,
        file: ModelFile,
        response: aiohttp.ClientResponse,
        part: _Part,
        on_bytes: Callable[[FileSource, int], None],
    ) -> None:
        while True:
            async with asyncio.timeout(_PIECE_S):
                piece = await _next_piece(response)
            if not piece:
                break
            if part.n_bytes + len(piece) > file.size_bytes:
                raise TooLargeError(f"{source.name} sent more than the {file.size_bytes} bytes of {file.name}")
            await asyncio.to_thread(part.append, piece)
            on_bytes(source, len(piece))
        if part.n_bytes < file.size_bytes:
            raise UnreachableError(f"{source.name} ended {file.name} at byte {part.n_bytes} of {file.size_bytes}")


class _Part:
    """A file that is being written, and the hash of what is in it. Blocks.

    The lock is for `close`: a cancelled download closes while a thread still appends.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.n_bytes = 0
        self._path = path
        self._max_bytes = max_bytes
        self._digest: Any = hashlib.sha256()
        self._file: BinaryIO | None = None
        self._guard = threading.RLock()

    def open(self) -> None:
        """Open or make the part; what is there already is hashed, and thrown away if it is too long."""
        with self._guard, storage_errors(self._path):
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            self._file = os.fdopen(descriptor, "r+b", buffering=0)
            while chunk := self._file.read(_PIECE_BYTES):
                self._digest.update(chunk)
                self.n_bytes += len(chunk)
            if self.n_bytes > self._max_bytes:
                self.restart()

    def append(self, piece: bytes) -> None:
        with self._guard, storage_errors(self._path):
            assert self._file is not None
            view = memoryview(piece)
            while view:
                view = view[self._file.write(view) :]
            self._digest.update(piece)
            self.n_bytes += len(piece)

    def restart(self) -> None:
        with self._guard, storage_errors(self._path):
            assert self._file is not None
            self._file.seek(0)
            self._file.truncate()
            self._digest, self.n_bytes = hashlib.sha256(), 0

    def sync(self) -> None:
        with self._guard, storage_errors(self._path):
            assert self._file is not None
            os.fsync(self._file.fileno())

    def sha256(self) -> str:
        return str(self._digest.hexdigest())

    def close(self) -> None:
        with self._guard:
            if self._file is not None:
                self._file.close()


async def _next_piece(response: aiohttp.ClientResponse) -> bytes:
    piece = bytearray()
    while len(piece) < _PIECE_BYTES:
        chunk = await response.content.read(_PIECE_BYTES - len(piece))
        if not chunk:
            break
        piece += chunk
    return bytes(piece)


def _check_range(response: aiohttp.ClientResponse, start: int, file: ModelFile) -> None:
    match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if match is None or int(match[1]) != start or int(match[3]) != file.size_bytes:
        raise UntrustedFileError(
            f"asked for {file.name} from byte {start} of {file.size_bytes}, got "
            f"{response.headers.get('Content-Range', 'no range')[:80]!r}"
        )
