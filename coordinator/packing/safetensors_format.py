"""The safetensors header: read with distrust, written the same way every time.

Layout: 8 bytes little-endian header length, a JSON object of tensors (padded with spaces), the tensors' bytes. Only
the header is handled here, so a file of any size costs its header's memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from protocol.errors import UntrustedFileError
from protocol.model_files.tensors import DTYPE_BITS, TensorInfo

MAX_HEADER_BYTES = 100_000_000
"""The format's own limit."""
MAX_TENSORS = 2**20
"""The largest models published have about 200,000."""
_MAX_DIMENSIONS = 64
_LENGTH_BYTES = 8


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """A tensor and where its bytes start, counted from the start of the file."""

    info: TensorInfo
    offset: int


def header_size(prefix: bytes, file_bytes: int, *, label: str) -> int:
    """The header's length that the first 8 bytes state, checked before anything is allocated for it.

    Raises:
        UntrustedFileError: too short, over the limit or over the file's own size.
    """
    if len(prefix) < _LENGTH_BYTES:
        raise UntrustedFileError(f"{label}: {file_bytes} bytes are too few for a safetensors file")
    n_bytes = int.from_bytes(prefix[:_LENGTH_BYTES], "little")
    if not 2 <= n_bytes <= MAX_HEADER_BYTES or _LENGTH_BYTES + n_bytes > file_bytes:
        raise UntrustedFileError(
            f"{label}: its header says that it is {n_bytes} bytes long; the file has {file_bytes} and a header at "
            f"most {MAX_HEADER_BYTES}: the file is cut, altered or not safetensors"
        )
    return n_bytes


def read_header(header: bytes, file_bytes: int, *, label: str) -> dict[str, StoredTensor]:
    """The tensors that `header` (without its length) names, each checked against the file's size.

    Raises:
        UntrustedFileError: names the tensor and the numbers that don't agree.
    """
    data_start = _LENGTH_BYTES + len(header)
    try:
        raw = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise UntrustedFileError(f"{label}: its header is not a JSON object of tensors: {exc}") from exc
    raw.pop("__metadata__", None)
    if len(raw) > MAX_TENSORS:
        raise UntrustedFileError(f"{label}: {len(raw)} tensors; at most {MAX_TENSORS} are read")
    found = sorted(
        (_read_entry(name, entry, data_start, label=label) for name, entry in raw.items()),
        key=lambda tensor: (tensor.offset, tensor.info.n_bytes),
    )
    _check_covering(found, data_start, file_bytes, label=label)
    return {tensor.info.name: tensor for tensor in found}


def _read_entry(name: str, raw: msgspec.Raw, data_start: int, *, label: str) -> StoredTensor:
    where = f"{label}: tensor {name[:120]!r}"
    try:
        entry = msgspec.json.decode(raw, type=_Entry)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise UntrustedFileError(f"{where}: {exc}") from exc
    if entry.dtype not in DTYPE_BITS:
        raise UntrustedFileError(
            f"{where}: dtype {entry.dtype[:20]!r} is unknown; known are {', '.join(DTYPE_BITS)}"
        )
    if len(entry.shape) > _MAX_DIMENSIONS or any(not 0 <= size < 2**63 for size in entry.shape):
        raise UntrustedFileError(f"{where}: a shape of {str(entry.shape)[:120]} is out of range")
    info = TensorInfo(name=name, dtype=entry.dtype, shape=tuple(entry.shape))
    start, end = entry.data_offsets
    if not 0 <= start <= end or end - start != info.n_bytes:
        raise UntrustedFileError(
            f"{where}: shape {str(entry.shape)[:120]} of {entry.dtype} needs {info.n_bytes} bytes, "
            f"its offsets {start} to {end} hold {end - start}"
        )
    return StoredTensor(info=info, offset=data_start + start)


def _check_covering(tensors: Sequence[StoredTensor], data_start: int, file_bytes: int, *, label: str) -> None:
    """Refuse overlaps, gaps and data outside the file. `tensors` are in the order of their offsets."""
    position = data_start
    for tensor in tensors:
        if tensor.offset != position:
            what = "overlaps the one before it" if tensor.offset < position else "leaves a gap before it"
            raise UntrustedFileError(
                f"{label}: tensor {tensor.info.name[:120]!r} starts at byte {tensor.offset} and {what}, "
                f"which ends at {position}"
            )
        position += tensor.info.n_bytes
    if position != file_bytes:
        raise UntrustedFileError(
            f"{label}: its tensors end at byte {position}, the file at {file_bytes}: it is cut or altered"
        )


def build_header(tensors: Sequence[TensorInfo]) -> bytes:
    """The start of a safetensors file (length and header) whose data are `tensors` in this order.

    The same tensors always give the same bytes; the data start at a multiple of 8.
    """
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for tensor in tensors:
        end = position + tensor.n_bytes
        entries[tensor.name] = _Entry(tensor.dtype, list(tensor.shape), (position, end))
        position = end
    text = msgspec.json.encode(entries)
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text
