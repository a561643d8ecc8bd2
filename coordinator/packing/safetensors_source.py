"""A folder of safetensors, one file or sharded with an index, as a source of tensors.

Files are opened once and read through the same descriptor that was checked, so a file swapped in between is never
read; one that shrinks meanwhile is noticed. A name in the index never leads out of the folder.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import msgspec

from coordinator.packing.safetensors_format import StoredTensor, header_size, read_header
from protocol.errors import InvalidRequestError, StorageError, UntrustedFileError
from protocol.model_files.tensors import PIECE_BYTES, TensorInfo
from protocol.plain_files import open_without_waiting, read_at

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_MAX_INDEX_BYTES = 100_000_000
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")


class _Index(msgspec.Struct, frozen=True):
    weight_map: dict[str, str]


class SafetensorsSource:
    """The tensors of the safetensors files in `folder`. A context manager: leaving closes the files.

    `link_root` is the folder that symbolic links may lead into: the folder itself, or the model's own cache folder
    for a download from the Hub.

    Raises:
        InvalidRequestError: no safetensors there; says what is and what to do.
        UntrustedFileError: an index or header that lies, or a name that leads elsewhere.
        StorageError: a file can't be read.
    """

    def __init__(self, folder: Path, *, link_root: Path) -> None:
        self._folder = folder
        self._link_root = link_root.resolve()
        self._stack = ExitStack()
        self._places: dict[str, tuple[int, StoredTensor]] = {}
        try:
            self._open_all()
        except BaseException:
            self._stack.close()
            raise
        self._infos = {name: stored.info for name, (_, stored) in self._places.items()}

    def __enter__(self) -> SafetensorsSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor by name."""
        return self._infos

    def pieces(self, name: str) -> Iterator[memoryview]:
        """The tensor's bytes as they are in the file.

        Raises:
            UntrustedFileError: the file became shorter since it was opened.
        """
        fd, stored = self._places[name]
        offset, end = stored.offset, stored.offset + stored.info.n_bytes
        while offset < end:
            data = _read_at(fd, min(PIECE_BYTES, end - offset), offset, label=name)
            if not data:
                raise UntrustedFileError(f"tensor {name!r}: its file ended at byte {offset}, {end} were expected")
            offset += len(data)
            yield memoryview(data)

    def _open_all(self) -> None:
        if (self._folder / INDEX_FILE).exists():
            weight_map = self._read_index()
            for file_name in sorted(set(weight_map.values())):
                self._open_shard(file_name)
            for name, file_name in weight_map.items():
                if name not in self._places:
                    raise UntrustedFileError(
                        f"{INDEX_FILE} names tensor {name[:120]!r}, but {file_name} doesn't have it"
                    )
        elif (self._folder / SINGLE_FILE).exists():
            self._open_shard(SINGLE_FILE)
        else:
            raise _no_safetensors(self._folder)

    def _read_index(self) -> dict[str, str]:
        path = checked_path(self._folder, INDEX_FILE, link_root=self._link_root)
        data = read_small_file(path, limit=_MAX_INDEX_BYTES)
        try:
            weight_map = msgspec.json.decode(data, type=_Index).weight_map
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            raise UntrustedFileError(f"{INDEX_FILE} is not an index of safetensors: {exc}") from exc
        if not weight_map:
            raise UntrustedFileError(f"{INDEX_FILE} names no tensors")
        return weight_map

    def _open_shard(self, file_name: str) -> None:
        path = checked_path(self._folder, file_name, link_root=self._link_root)
        fd, file_bytes = _open_regular(path)
        self._stack.callback(os.close, fd)
        n_header = header_size(_read_at(fd, 8, 0, label=file_name), file_bytes, label=file_name)
        header = _read_at(fd, n_header, 8, label=file_name)
        if len(header) != n_header:
            raise UntrustedFileError(f"{file_name}: it became shorter while it was read")
        for name, stored in read_header(header, file_bytes, label=file_name).items():
            if name in self._places:
                raise UntrustedFileError(f"tensor {name[:120]!r} is in two files, {file_name} is the second")
            self._places[name] = (fd, stored)


def checked_path(folder: Path, name: str, *, link_root: Path) -> Path:
    """Where the plain name `name` in `folder` really is.

    Raises:
        UntrustedFileError: not a plain name, or a link that leads out of `link_root`.
        InvalidRequestError: there is no such file.
    """
    if _PLAIN_NAME.fullmatch(name) is None:
        raise UntrustedFileError(f"{name[:200]!r} is not a plain file name inside the model's folder")
    try:
        resolved = (folder / name).resolve(strict=True)
    except (OSError, RuntimeError) as exc:
        raise InvalidRequestError(f"{folder / name} is missing: the model is not complete; fetch it again") from exc
    if not resolved.is_relative_to(link_root.resolve()):
        raise UntrustedFileError(f"{name} is a link that leads out of the model's folder, to {resolved}")
    return resolved


def read_small_file(path: Path, *, limit: int) -> bytes:
    """A whole file of at most `limit` bytes.

    Raises:
        UntrustedFileError: it is larger, or changes while it is read.
        StorageError: it can't be read.
    """
    fd, file_bytes = _open_regular(path)
    with os.fdopen(fd, "rb") as file:
        data = file.read(min(limit, file_bytes) + 1)  # which is allocated at once, however small the file is
    if file_bytes > limit:
        raise UntrustedFileError(f"{path.name} has {file_bytes} bytes; at most {limit} are read")
    if len(data) != file_bytes:
        raise UntrustedFileError(f"{path.name} had {file_bytes} bytes and changed while it was read: try again")
    return data


def _open_regular(path: Path) -> tuple[int, int]:
    """A descriptor of the file and its size; never a link, a pipe or a device."""
    try:
        fd = open_without_waiting(path)
    except OSError as exc:
        raise StorageError(f"{path} can't be read: {exc.strerror}") from exc
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        os.close(fd)
        raise UntrustedFileError(f"{path} is not a regular file")
    return fd, status.st_size


def _read_at(fd: int, n_bytes: int, offset: int, *, label: str) -> bytes:
    try:
        return read_at(fd, n_bytes, offset)
    except OSError as exc:
        raise StorageError(f"{label} can't be read at byte {offset}: {exc.strerror}") from exc


def _no_safetensors(folder: Path) -> InvalidRequestError:
    if any(folder.glob("pytorch_model*.bin")) or any(folder.glob("*.pt")) or any(folder.glob("*.pth")):
        return InvalidRequestError(
            f"{folder} has only pickled weights (pytorch_model.bin), which can run code when they are read and are "
            "never loaded; use a safetensors version of the model, or save it again with save_pretrained()"
        )
    if any(folder.glob("*.gguf")):
        return InvalidRequestError(f"{folder} has GGUF files; name the one that you want, not the folder")
    return InvalidRequestError(f"{folder} has neither {SINGLE_FILE} nor {INDEX_FILE}")
