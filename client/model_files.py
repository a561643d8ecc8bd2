"""A model's config and tokenizer files: fetched from the coordinator, verified, kept by hash.

The manifest is verified by the model's revision and each file by the manifest, also when it comes out of the
cache, so neither the coordinator's disk nor the cache's can slip another tokenizer in.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from protocol.embedding_settings import EMBEDDING_FILE
from protocol.errors import TooLargeError, UntrustedFileError
from protocol.ids import FileHash, Revision
from protocol.manifest import MAX_MANIFEST_BYTES, Manifest, ModelFile, decode_manifest
from protocol.pinned_http import CoordinatorSession

TOOL_TEMPLATE_FILE = "chat_template_tool_use.jinja"
"""Of models that have one template for chats and another for chats with tools."""
WANTED = frozenset(
    {
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        TOOL_TEMPLATE_FILE,
        "generation_config.json",
        "config.json",
        "special_tokens_map.json",
        EMBEDDING_FILE,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """A model's manifest and the bytes of its auxiliary files that a client needs, by name."""

    revision: Revision
    manifest: Manifest
    contents: dict[str, bytes]


async def fetched_model(coordinator: CoordinatorSession, revision: Revision, cache: FileCache) -> ModelFiles:
    """The files of the model, from the cache where it has them.

    Raises:
        UntrustedFileError: the manifest or a file isn't what its hash says.
        NotFoundError: the coordinator has no such model any more.
    """
    data = await asyncio.to_thread(cache.read, FileHash(revision))
    if data is None:
        data = await coordinator.get_bytes(f"/v1/manifests/{revision}", max_bytes=MAX_MANIFEST_BYTES)
        manifest = await asyncio.to_thread(decode_manifest, data, expected=revision)
        await asyncio.to_thread(cache.write, FileHash(revision), data)
    else:
        manifest = await asyncio.to_thread(decode_manifest, data, expected=revision)
    contents = {
        file.name: await _content(coordinator, file, cache) for file in manifest.auxiliary if file.name in WANTED
    }
    return ModelFiles(revision=revision, manifest=manifest, contents=contents)


async def _content(coordinator: CoordinatorSession, file: ModelFile, cache: FileCache) -> bytes:
    data = await asyncio.to_thread(cache.read, file.sha256)
    if data is not None:
        return data
    altered = UntrustedFileError(
        f"{file.name} came from {coordinator.url} with another hash or size than the model's manifest says "
        f"({file.size_bytes} bytes): it was altered or cut there; add the model again there"
    )
    try:
        data = await coordinator.get_bytes(f"/v1/files/{file.sha256}", max_bytes=file.size_bytes)
    except TooLargeError as exc:
        raise altered from exc
    if await asyncio.to_thread(_hash, data) != file.sha256:
        raise altered
    await asyncio.to_thread(cache.write, file.sha256, data)
    return data


class FileCache:
    """Small files in a folder, named by their SHA-256; the least recently used go when there are too many bytes.

    Methods block: call them in a thread. A folder that can't be written is no error, only slower: the files
    are then fetched each time.
    """

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes

    def read(self, sha256: FileHash) -> bytes | None:
        """The file, or None if it isn't here or isn't what its name says (then it is removed)."""
        path = self._folder / sha256
        try:
            data = path.read_bytes()
        except OSError:
            return None
        with contextlib.suppress(OSError):
            if _hash(data) != sha256:
                path.unlink()
                return None
            os.utime(path)  # used now
        return data

    def write(self, sha256: FileHash, data: bytes) -> None:
        """Keep the file, whose hash the caller has checked."""
        beside = self._folder / f"{sha256}.{secrets.token_hex(4)}.part"
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            beside.write_bytes(data)
            beside.replace(self._folder / sha256)
            self._shrink()
        except OSError:
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)

    def _shrink(self) -> None:
        found = [(path.stat(), path) for path in self._folder.iterdir() if path.is_file()]
        n_bytes = sum(status.st_size for status, _ in found)
        for status, path in sorted(found, key=lambda pair: pair[0].st_mtime_ns):
            if n_bytes <= self._max_bytes:
                return
            path.unlink(missing_ok=True)
            n_bytes -= status.st_size


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
