"""Getting one model file: from the first source that sends the right bytes, going on where an earlier try stopped.

A source may be slow, silent, wrong or hostile; the bytes are hashed as they come and get a final name only when the
hash is the file's. Hashing and writing happen in threads. Who sent other bytes than the hash says is told on.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import ssl
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import aiohttp
import structlog

from protocol.background import uninterrupted
from protocol.disk import storage_errors
from protocol.error_forms import error_fields
from protocol.errors import BrigadeError, StorageError, TooLargeError, UnreachableError, UntrustedFileError
from protocol.http_answers import error_of, read_body
from protocol.ids import WorkerId
from protocol.manifest import ModelFile
from protocol.plain_files import open_plain
from worker.files import FileCache

log = structlog.get_logger(__name__)

STALL_S = 10.0
"""Without a single byte for so long, a source is given up."""
_PIECE_BYTES = 2**20
PIECE_S = 60.0
"""For each MiB, the first with the answer's beginning: a source that drips is given up too."""
_GATHER_S = 0.2
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSource:
    """Somebody who serves `GET {url}/v1/files/{sha256}`."""

    name: str
    """For people: a worker's id, or `the coordinator`."""
    worker_id: WorkerId | None = None
    """None: the coordinator, whom nobody is told on to."""
    url: str
    context: ssl.SSLContext
    server_hostname: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


OnBytes = Callable[[FileSource, int], None]
"""Hears of every piece."""
OnBadSource = Callable[[FileSource, ModelFile], Awaitable[None]]
"""Hears of a source that sent other bytes than the file's; the download waits for it before it goes on."""


async def _untold(_source: FileSource, _file: ModelFile) -> None:
    """Nobody wants to hear of it."""


class Downloader:
    """Downloads into a cache."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        cache: FileCache,
        clock: Callable[[], float],
        *,
        stall_s: float = STALL_S,
        piece_s: float = PIECE_S,
    ) -> None:
        self._session = session
        self._cache = cache
        self._clock = clock
        self._piece_s = piece_s
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=stall_s, sock_read=stall_s)

    async def fetch(
        self,
        file: ModelFile,
        sources: Sequence[FileSource],
        on_bytes: OnBytes,
        on_bad_source: OnBadSource = _untold,
    ) -> Path:
        """Get the file from one of the sources, in order.

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
                if isinstance(exc, (UntrustedFileError, TooLargeError)):
                    await on_bad_source(source, file)
        raise UnreachableError(f"{file.name} can't be had: " + ("; ".join(faults) or "nobody has it"))

    async def _fetch_from(self, source: FileSource, file: ModelFile, on_bytes: OnBytes) -> Path:
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
            await uninterrupted(asyncio.to_thread(part.close))
        return await asyncio.to_thread(self._cache.admit, file.sha256, file.size_bytes, self._clock())

    async def _collect(self, source: FileSource, file: ModelFile, part: _Part, on_bytes: OnBytes) -> None:
        """Append what the source sends from the part's end on; the deadline moves on with every MiB."""
        if part.n_bytes == file.size_bytes:
            return
        try:
            async with (
                asyncio.timeout(self._piece_s) as deadline,
                self._session.get(
                    f"{source.url}/v1/files/{file.sha256}",
                    headers={**source.headers, "Range": f"bytes={part.n_bytes}-", "Accept-Encoding": "identity"},
                    ssl=source.context,
                    server_hostname=source.server_hostname,
                    timeout=self._timeout,
                    allow_redirects=False,
                ) as response,
            ):
                if response.status not in (200, 206):
                    raise error_of(response, await read_body(response))
                if response.status == 200:  # all of it again: the source knows no ranges
                    _check_length(response, file)
                    await asyncio.to_thread(part.restart)
                else:
                    _check_range(response, part.n_bytes, file)
                body, next_milestone = _Body(response), part.n_bytes + _PIECE_BYTES
                while piece := await body.piece():
                    if part.n_bytes + len(piece) > file.size_bytes:
                        raise TooLargeError(
                            f"{source.name} sent more than the {file.size_bytes} bytes of {file.name}"
                        )
                    await asyncio.to_thread(part.append, piece)
                    on_bytes(source, len(piece))
                    if part.n_bytes >= next_milestone:
                        deadline.reschedule(asyncio.get_running_loop().time() + self._piece_s)
                        next_milestone = part.n_bytes + _PIECE_BYTES
        except TimeoutError as exc:
            raise UnreachableError(f"no more bytes came from {source.name} at byte {part.n_bytes}") from exc
        except aiohttp.ClientError as exc:
            raise UnreachableError(f"{source.name} broke off at byte {part.n_bytes}: {exc}") from exc
        if part.n_bytes < file.size_bytes:
            raise UnreachableError(f"{source.name} ended {file.name} at byte {part.n_bytes} of {file.size_bytes}")


class _Part:
    """A file that is being written, and the hash of what is in it. Blocks.

    The lock is for `close`: a cancelled download closes while a thread still opens or appends; what is closed
    before it was opened stays closed.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.n_bytes = 0
        self._path = path
        self._max_bytes = max_bytes
        self._digest: Any = hashlib.sha256()
        self._file: BinaryIO | None = None
        self._closed = threading.Event()
        self._guard = threading.RLock()

    def open(self) -> None:
        """Open or make the part; what is there already is hashed, and thrown away if it is too long."""
        with self._guard, storage_errors(self._path):
            if self._closed.is_set():
                return
            descriptor = open_plain(self._path, os.O_RDWR | os.O_CREAT)
            self._file = os.fdopen(descriptor, "r+b", buffering=0)
            while not self._closed.is_set() and (chunk := self._file.read(_PIECE_BYTES)):
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
        self._closed.set()  # before the lock: whoever hashes what is there needn't end it
        with self._guard:
            if self._file is not None:
                self._file.close()


class _Body:
    """An answer's body in pieces. What came before the source broke off or fell silent is given out first."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._content = response.content
        self._error: Exception | None = None

    async def piece(self) -> bytes:
        """What comes within a moment, about 1 MiB at most: each piece costs a turn of a thread. Empty at the end.

        Raises:
            TimeoutError, aiohttp.ClientError: nothing more comes.
        """
        if self._error is not None:
            raise self._error
        loop = asyncio.get_running_loop()
        piece, gathered_at_s = bytearray(), loop.time() + _GATHER_S
        while len(piece) < _PIECE_BYTES and loop.time() < gathered_at_s:
            try:
                chunk = await self._content.readany()
            except (TimeoutError, aiohttp.ClientError) as exc:
                if not piece:
                    raise
                self._error = exc
                break
            if not chunk:
                break
            piece += chunk
        return bytes(piece)


def _check_length(response: aiohttp.ClientResponse, file: ModelFile) -> None:
    """Refuse before the part is given up for it; a source that doesn't say the length is found out by the hash."""
    if response.content_length not in (None, file.size_bytes):
        raise UntrustedFileError(f"{file.name} has {file.size_bytes} bytes; {response.content_length} were offered")


def _check_range(response: aiohttp.ClientResponse, start: int, file: ModelFile) -> None:
    match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if match is None or int(match[1]) != start or int(match[3]) != file.size_bytes:
        raise UntrustedFileError(
            f"asked for {file.name} from byte {start} of {file.size_bytes}, got "
            f"{response.headers.get('Content-Range', 'no range')[:80]!r}"
        )
