"""The GGUF header, read with distrust: every count, length and offset is checked before it is used.

The library's own readers trust the file. They are let near it only after `read_gguf` has accepted it.
Layout: magic, version, counts, key-value pairs, tensor table, padding, tensor data.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from protocol.errors import StorageError, UntrustedFileError

MAX_TENSORS = 2**20
MAX_KEYS = 2**16
MAX_ARRAY_ELEMENTS = 2**22
"""In all arrays together; the library makes Python objects of each. 256k-token vocabularies need 1.5 million."""
MAX_ALIGNMENT = 2**20
_MAX_DIMENSIONS = 4
_VERSIONS = (2, 3)
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY, _UINT32 = 8, 9, 4

type_name = {int(kind): kind.name for kind in GGMLQuantizationType}
"""GGML's name of each encoding."""
block_sizes = {int(kind): (int(elements), int(size)) for kind, (elements, size) in GGML_QUANT_SIZES.items()}
"""Elements and bytes of one block of each encoding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufTensor:
    """A tensor of the file: its shape in torch's order, encoding, and place counted from the file's start."""

    name: str
    shape: tuple[int, ...]
    encoding: int
    offset: int
    n_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufHeader:
    """A checked header. `metadata` has scalars and strings; of arrays only the number of elements, as `len`."""

    metadata: Mapping[str, object]
    array_lengths: Mapping[str, int]
    tensors: tuple[GgufTensor, ...]

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the architecture."""
        return str(self.metadata["general.architecture"])


def read_gguf(path: Path) -> GgufHeader:
    """Read and check the header of the GGUF file at `path`.

    Raises:
        UntrustedFileError: not GGUF, or a field that doesn't agree with the file; says which, with the numbers.
        StorageError: the file can't be read.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(data, label=path.name).read()
    except ValueError as exc:  # mmap's word for an empty file
        raise UntrustedFileError(f"{path.name} is empty") from exc
    except OSError as exc:
        raise StorageError(f"{path} can't be read: {exc.strerror}") from exc


class _Reader:
    """A position in the file that never passes its end."""

    def __init__(self, data: mmap.mmap, *, label: str) -> None:
        self._data = data
        self._label = label
        self._size = len(data)
        self._position = 0
        self._n_array_elements = 0
        self._metadata: dict[str, object] = {}
        self._array_lengths: dict[str, int] = {}

    def read(self) -> GgufHeader:
        n_tensors, n_keys = self._read_counts()
        for _ in range(n_keys):
            self._read_pair()
        if not isinstance(self._metadata.get("general.architecture"), str):
            raise self._lie("it has no general.architecture")
        entries = [self._read_tensor() for _ in range(n_tensors)]
        alignment = self._alignment()
        data_start = -(-self._position // alignment) * alignment
        tensors = self._place(entries, data_start, alignment)
        return GgufHeader(metadata=self._metadata, array_lengths=self._array_lengths, tensors=tensors)

    def _read_counts(self) -> tuple[int, int]:
        if self._take(4, "the magic") != b"GGUF":
            raise self._lie("it doesn't start with GGUF")
        version = self._integer("<I", "the version")
        if version not in _VERSIONS:
            hint = " (a big-endian file, which can't be read)" if version & 0xFFFF == 0 else ""
            raise self._lie(f"version {version} is not 2 or 3{hint}")
        n_tensors, n_keys = self._integer("<Q", "tensor_count"), self._integer("<Q", "kv_count")
        left = self._size - self._position
        # The smallest tensor entry has 32 bytes (name length, dimensions, one of them, type, offset), a pair 13.
        if n_tensors > min(MAX_TENSORS, left // 32) or n_keys > min(MAX_KEYS, left // 13):
            raise self._lie(
                f"{n_tensors} tensors and {n_keys} keys can't be in the {left} bytes that follow "
                f"(and at most {MAX_TENSORS} and {MAX_KEYS} are read)"
            )
        return n_tensors, n_keys

    def _read_pair(self) -> None:
        key = self._string("a key")
        if key in self._metadata or key in self._array_lengths:
            raise self._lie(f"key {key[:80]!r} is there twice")
        kind = self._integer("<I", f"the type of {key[:80]!r}")
        if kind == _ARRAY:
            self._array_lengths[key] = self._skip_array(key)
        elif kind == _STRING:
            self._metadata[key] = self._string(f"key {key[:80]!r}")
        elif kind in _SCALARS:
            self._metadata[key] = self._scalar(_SCALARS[kind], f"key {key[:80]!r}")
        else:
            raise self._lie(f"key {key[:80]!r} has the unknown type {kind}")
        if key == "general.alignment" and kind != _UINT32:
            raise self._lie(f"general.alignment has type {kind}, not uint32")

    def _skip_array(self, key: str) -> int:
        what = f"array {key[:80]!r}"
        kind, n_elements = self._integer("<I", what), self._integer("<Q", what)
        if kind != _STRING and kind not in _SCALARS:
            raise self._lie(f"{what} has elements of type {kind}, which can't be read")
        element_bytes = 8 if kind == _STRING else struct.calcsize(_SCALARS[kind])
        left = self._size - self._position
        self._n_array_elements += n_elements
        if n_elements * element_bytes > left or self._n_array_elements > MAX_ARRAY_ELEMENTS:
            raise self._lie(
                f"{what} of {n_elements} elements can't be in the {left} bytes that follow "
                f"(and all arrays together may have {MAX_ARRAY_ELEMENTS})"
            )
        if kind == _STRING:
            for _ in range(n_elements):
                self._string(what)
        else:
            self._take(n_elements * element_bytes, what)
        return n_elements

    def _read_tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._string("a tensor's name")
        what = f"tensor {name[:80]!r}"
        n_dimensions = self._integer("<I", what)
        if not 1 <= n_dimensions <= _MAX_DIMENSIONS:
            raise self._lie(f"{what} has {n_dimensions} dimensions; 1 to {_MAX_DIMENSIONS} can be")
        sizes = [self._integer("<Q", what) for _ in range(n_dimensions)]
        encoding, offset = self._integer("<I", what), self._integer("<Q", what)
        if encoding not in block_sizes:
            raise self._lie(
                f"{what} has the unknown encoding {encoding}, or one that came after the installed `gguf` package; "
                f"known are {', '.join(type_name[kind] for kind in sorted(block_sizes))}"
            )
        elements = block_sizes[encoding][0]
        if min(sizes) < 1 or math.prod(sizes) >= 2**62 or sizes[0] % elements:
            raise self._lie(
                f"{what} has a shape of {sizes}: sizes must be positive, the first a multiple of {elements} "
                f"for {type_name[encoding]}"
            )
        return name, tuple(reversed(sizes)), encoding, offset

    def _alignment(self) -> int:
        alignment = self._metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 8 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
            raise self._lie(f"general.alignment = {alignment} is not a power of two from 8 to {MAX_ALIGNMENT}")
        return alignment

    def _place(
        self, entries: list[tuple[str, tuple[int, ...], int, int]], data_start: int, alignment: int
    ) -> tuple[GgufTensor, ...]:
        tensors: dict[str, GgufTensor] = {}
        for name, shape, encoding, offset in entries:
            elements, block_bytes = block_sizes[encoding]
            n_bytes = math.prod(shape) // elements * block_bytes
            start = data_start + offset
            if offset % alignment or start + n_bytes > self._size:
                raise self._lie(
                    f"tensor {name[:80]!r} of {n_bytes} bytes at byte {start} is not inside the file of "
                    f"{self._size} bytes, or not at a multiple of {alignment}: the file is cut or altered"
                )
            if name in tensors:
                raise self._lie(f"tensor {name[:80]!r} is there twice")
            tensors[name] = GgufTensor(name=name, shape=shape, encoding=encoding, offset=start, n_bytes=n_bytes)
        end = data_start
        for tensor in sorted(tensors.values(), key=lambda tensor: tensor.offset):
            if tensor.offset < end:
                raise self._lie(
                    f"tensor {tensor.name[:80]!r} at byte {tensor.offset} overlaps one that ends at {end}"
                )
            end = tensor.offset + tensor.n_bytes
        return tuple(tensors.values())

    def _string(self, what: str) -> str:
        n_bytes = self._integer("<Q", what)
        try:
            return self._take(n_bytes, what).decode()
        except UnicodeDecodeError as exc:
            raise self._lie(f"{what} is not UTF-8") from exc

    def _integer(self, layout: str, what: str) -> int:
        value = self._scalar(layout, what)
        assert isinstance(value, int)
        return value

    def _scalar(self, layout: str, what: str) -> object:
        return struct.unpack(layout, self._take(struct.calcsize(layout), what))[0]

    def _take(self, n_bytes: int, what: str) -> bytes:
        end = self._position + n_bytes
        if end > self._size:
            raise self._lie(
                f"{what} of {n_bytes} bytes at byte {self._position} goes over the file's end at {self._size}"
            )
        data = self._data[self._position : end]
        self._position = end
        return data

    def _lie(self, reason: str) -> UntrustedFileError:
        return UntrustedFileError(f"{self._label} is not a sound GGUF file: {reason}")
