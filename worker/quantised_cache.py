"""Matrices that a worker rounded to codes, kept on its disk, so that the next start needn't round them again.

    FOLDER/abcdef...   SHA-256 of the rest (32 bytes), then a safetensors file of the codes, scales and zeros

A file's name is a hash of what it was made of: the model file, the tensor in it, the bits of a code, the version of
the rounding. What can't be read or isn't what was written is made anew. These files make way for model files, the
least recently used first, and only use room that those leave: nothing is lost with them but time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import structlog
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from worker.byte_sizes import size_text
from worker.codes import PackedCodes
from worker.file_tensors import FileTensor

log = structlog.get_logger(__name__)

_FORMAT = "1"
"""Goes up when rounding or layout change: what older versions wrote is then not found, and goes in time."""
_DIGEST_BYTES = 32


class QuantisedCache:
    """The files under `folder`. Everything blocks; one thread reads and writes, others may call the rest."""

    def __init__(self, folder: Path, room_bytes: Callable[[], int]) -> None:
        """`room_bytes` says how much more may be stored, whatever is here counted as stored."""
        self._folder = folder
        self._room_bytes = room_bytes
        self._used: set[str] = set()
        """Since the start: a model that doesn't fit as a whole mustn't push its own beginning out."""
        self._is_full = False

    def get(self, source: FileTensor, n_bits: int) -> PackedCodes | None:
        """The codes of `source`, if they are here and whole."""
        path = self._folder / _key(source, n_bits)
        try:
            with path.open("rb") as file:
                digest, data = file.read(_DIGEST_BYTES), file.read()
        except OSError:
            return None
        codes = _decoded(digest, data)
        if codes is None:
            log.warning("quantised_file_damaged", path=str(path), next_step="it is made anew")
            _remove(path)
            return None
        self._used.add(path.name)
        with suppress(OSError):
            path.touch()  # the time of its last use
        return codes

    def put(self, source: FileTensor, n_bits: int, codes: PackedCodes) -> bool:
        """Keep the codes of `source` if there is room or older ones can go; whether they are kept."""
        data, path = _encoded(codes), self._folder / _key(source, n_bits)
        partial = path.with_suffix(".new")
        try:
            wanting = _DIGEST_BYTES + len(data) - self._room_bytes()
            if wanting > 0 and self.make_way(wanting, keep=self._used) < wanting:
                self._say_full(
                    f"{size_text(wanting)} are wanting in {self._folder}; raise --cache-size or free some"
                )
                return False
            self._folder.mkdir(mode=0o700, exist_ok=True)
            with partial.open("wb") as file:
                file.write(hashlib.sha256(data).digest())
                file.write(data)
            partial.replace(path)
        except OSError as exc:
            self._say_full(f"{path} can't be written: {exc.strerror or exc}")
            _remove(partial)
            return False
        self._used.add(path.name)
        return True

    def total_size(self) -> int:
        """Bytes of all files here."""
        return sum(size for _, size, _ in self._files())

    def make_way(self, n_bytes: int, *, keep: set[str] | frozenset[str] = frozenset()) -> int:
        """Remove least recently used files, none named in `keep`, until so many bytes are free; how many are."""
        n_freed = 0
        for _, size, path in sorted(self._files()):
            if n_freed >= n_bytes:
                break
            if path.name not in keep and _remove(path):
                n_freed += size
        return n_freed

    def _files(self) -> list[tuple[int, int, Path]]:
        """Last use, size and path of each."""
        found: list[tuple[int, int, Path]] = []
        with suppress(OSError):
            for path in self._folder.iterdir():
                with suppress(FileNotFoundError):
                    status = path.stat()
                    found.append((status.st_mtime_ns, status.st_size, path))
        return found

    def _say_full(self, reason: str) -> None:
        """Once: it is the same for all that follow."""
        if not self._is_full:
            log.warning(
                "quantised_weights_not_kept", reason=reason, next_step="they are rounded anew at each start"
            )
        self._is_full = True


def _remove(path: Path) -> bool:
    """Whether it is gone: on a disk that is closed to us it can't be, which is no reason not to load a model."""
    with suppress(OSError):
        path.unlink(missing_ok=True)
        return True
    return False


def _key(source: FileTensor, n_bits: int) -> str:
    return hashlib.sha256("\0".join((_FORMAT, source.file, source.name, str(n_bits))).encode()).hexdigest()


def _encoded(codes: PackedCodes) -> bytes:
    tensors = {"packed": codes.packed, "scales": codes.scales}
    if codes.zeros is not None:
        tensors["zeros"] = codes.zeros
    tensors["zero_code"] = torch.tensor(codes.zero_code)
    return save(tensors)


def _decoded(digest: bytes, data: bytes) -> PackedCodes | None:
    """None: it isn't what was written."""
    if hashlib.sha256(data).digest() != digest:
        return None
    try:
        tensors = load(data)
        return PackedCodes(
            packed=tensors["packed"],
            scales=tensors["scales"],
            zeros=tensors.get("zeros"),
            zero_code=int(tensors["zero_code"]),
        )
    except (SafetensorError, KeyError):
        return None
