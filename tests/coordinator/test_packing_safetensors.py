"""Safetensors headers and indexes: what is sound is read and written, what lies is refused with numbers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import deserialize

from coordinator.packing.safetensors_format import build_header, header_size, read_header
from coordinator.packing.safetensors_source import INDEX_FILE, SafetensorsSource
from protocol.errors import InvalidRequestError, UntrustedFileError
from protocol.model_files.tensors import DTYPE_BITS, TensorInfo
from tests.coordinator.packing_support import llama_tensors, write_model, write_safetensors

SOUND = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


def read(entries: dict[str, Any] | bytes, n_data: int = 24) -> None:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    read_header(text, 8 + len(text) + n_data, label="f")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"dtype": "F31"}, "dtype 'F31' is unknown"),
        ({"shape": [2, 4]}, "needs 32 bytes, its offsets 0 to 24 hold 24"),
        ({"shape": [-2, -3]}, "out of range"),
        ({"shape": [2**62, 2**62]}, "needs"),
        ({"shape": [1] * 65}, "out of range"),
        ({"shape": [2**70]}, "Integer|out of range|Expected"),
        ({"data_offsets": [24, 0]}, "hold -24"),
        ({"data_offsets": [-24, 0]}, "hold 24"),
        ({"data_offsets": [4, 28]}, "leaves a gap"),
        ({"data_offsets": [0]}, "Expected"),
        ({"shape": "x"}, "Expected"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_lying_entry_is_refused_with_its_numbers(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(UntrustedFileError, match=message):
        read({"t": SOUND | entry})


def test_overlaps_and_uncovered_data_are_refused() -> None:
    with pytest.raises(UntrustedFileError, match="overlaps"):
        read({"a": SOUND, "b": SOUND | {"data_offsets": [20, 44]}}, 44)
    with pytest.raises(UntrustedFileError, match="cut or altered"):
        read({"a": SOUND}, 25)
    with pytest.raises(UntrustedFileError, match="cut or altered"):
        read({"a": SOUND}, 23)


@pytest.mark.parametrize("text", [b"[]", b"{", b"\xff\xfe", b"[" * 100_000, b'{"a": 1}', b'{"a": {}}'])
def test_what_is_no_header_is_refused(text: bytes) -> None:
    with pytest.raises(UntrustedFileError):
        read(text)


@pytest.mark.parametrize(
    ("prefix", "n_file"), [(b"", 0), (b"\0" * 8, 100), (b"\xff" * 8, 2**40), ((101).to_bytes(8, "little"), 100)]
)
def test_a_header_length_that_cannot_be_is_refused(prefix: bytes, n_file: int) -> None:
    with pytest.raises(UntrustedFileError):
        header_size(prefix, n_file, label="f")


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=20).filter(lambda name: name != "__metadata__"),
        st.tuples(st.sampled_from(sorted(DTYPE_BITS)), st.lists(st.integers(0, 4), max_size=3)),
        max_size=6,
    )
)
def test_what_is_written_is_read_back_the_same(tensors: dict[str, tuple[str, list[int]]]) -> None:
    infos = [TensorInfo(name=name, dtype=dtype, shape=tuple(shape)) for name, (dtype, shape) in tensors.items()]
    header = build_header(infos)
    assert len(header) % 8 == 0
    n_file = len(header) + sum(info.n_bytes for info in infos)
    assert header_size(header[:8], n_file, label="f") == len(header) - 8
    found = read_header(header[8:], n_file, label="f")
    assert {name: stored.info for name, stored in found.items()} == {info.name: info for info in infos}


@given(data=st.data())
def test_a_corrupted_file_is_refused_or_read_never_anything_else(data: st.DataObject) -> None:
    infos = [TensorInfo(name=f"t{n}", dtype="F32", shape=(2, n)) for n in range(3)]
    whole = bytearray(build_header(infos) + bytes(24))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 25))] = data.draw(st.integers(0, 255))
    try:
        n_header = header_size(bytes(whole[:8]), len(whole), label="f")
        found = read_header(bytes(whole[8 : 8 + n_header]), len(whole), label="f")
    except UntrustedFileError:
        return
    assert sum(stored.info.n_bytes for stored in found.values()) == len(whole) - 8 - n_header


def sharded(folder: Path, weight_map: dict[str, str]) -> Path:
    write_model(folder)
    (folder / "model.safetensors").rename(folder / "shard.safetensors")
    (folder / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}))
    return folder


@pytest.mark.parametrize(
    "name",
    ["../shard.safetensors", "/etc/passwd", "a/b", "..", ".hidden", "", "a\0b", "shard.safetensors/", "x" * 300],
)
def test_an_index_cannot_name_anything_but_a_plain_file(tmp_path: Path, name: str) -> None:
    folder = sharded(tmp_path / "m", {"lm_head.weight": name})
    with pytest.raises(UntrustedFileError, match="not a plain file name"):
        SafetensorsSource(folder, link_root=folder)


@pytest.mark.parametrize("index", [b"{}", b"[]", b'{"weight_map": {}}', b'{"weight_map": {"a": 1}}', b"\xff"])
def test_a_malformed_index_is_refused(tmp_path: Path, index: bytes) -> None:
    folder = sharded(tmp_path / "m", {})
    (folder / INDEX_FILE).write_bytes(index)
    with pytest.raises(UntrustedFileError, match=INDEX_FILE):
        SafetensorsSource(folder, link_root=folder)


def test_an_index_that_disagrees_with_its_files_is_refused(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "m", {"nowhere": "shard.safetensors"})
    with pytest.raises(UntrustedFileError, match="doesn't have it"):
        SafetensorsSource(folder, link_root=folder)
    sharded(tmp_path / "n", {"lm_head.weight": "missing.safetensors"})
    with pytest.raises(InvalidRequestError, match="not complete"):
        SafetensorsSource(tmp_path / "n", link_root=tmp_path / "n")
    both = sharded(tmp_path / "o", {"lm_head.weight": "shard.safetensors", "model.norm.weight": "two.safetensors"})
    write_safetensors(both / "two.safetensors", {"model.norm.weight": b"x" * 64})
    with pytest.raises(UntrustedFileError, match="in two files"):
        SafetensorsSource(both, link_root=both)


def test_links_may_lead_inside_but_never_out(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "cache" / "snapshots" / "main")
    blob = tmp_path / "cache" / "blob"
    (folder / "model.safetensors").rename(blob)
    (folder / "model.safetensors").symlink_to("../../blob")
    with pytest.raises(UntrustedFileError, match="leads out"):
        SafetensorsSource(folder, link_root=folder)
    with SafetensorsSource(folder, link_root=tmp_path / "cache") as source:
        assert b"".join(source.pieces("lm_head.weight")) == llama_tensors()["lm_head.weight"]


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")
    with pytest.raises(UntrustedFileError, match="not a regular file"):
        SafetensorsSource(folder, link_root=folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [("pytorch_model.bin", "pickled weights"), ("x.gguf", "GGUF files"), ("readme.txt", "has neither")],
)
def test_a_folder_without_safetensors_is_told_what_to_do(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(InvalidRequestError, match=message):
        SafetensorsSource(tmp_path, link_root=tmp_path)


def test_the_library_reads_what_is_written() -> None:
    infos = [TensorInfo(name="b", dtype="BF16", shape=(2, 2)), TensorInfo(name="a", dtype="F32", shape=(1,))]
    tensors = dict(deserialize(build_header(infos) + b"12345678" + b"abcd"))
    assert bytes(tensors["b"]["data"]) == b"12345678"
    assert bytes(tensors["a"]["data"]) == b"abcd"
