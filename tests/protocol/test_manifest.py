"""Manifests: one canonical form, one revision, and nothing that could leave a folder."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import UntrustedFileError
from protocol.ids import BlockRange, Revision
from protocol.manifest import (
    MAX_MANIFEST_BYTES,
    Manifest,
    ModelFile,
    decode_manifest,
    encode_manifest,
    revision_of,
)
from tests.protocol.strategies import manifests


@given(manifest=manifests())
def test_a_manifest_comes_back_as_it_was_under_its_revision(manifest: Manifest) -> None:
    data = encode_manifest(manifest)
    assert decode_manifest(data, expected=revision_of(data)) == manifest


@given(manifest=manifests(), at=st.integers(0, 10_000), flip=st.integers(1, 255))
def test_an_altered_manifest_is_refused(manifest: Manifest, at: int, flip: int) -> None:
    data = bytearray(encode_manifest(manifest))
    revision = revision_of(bytes(data))
    data[at % len(data)] ^= flip
    with pytest.raises(UntrustedFileError):
        decode_manifest(bytes(data), expected=revision)


@given(manifest=manifests())
def test_another_writing_of_the_same_manifest_is_refused(manifest: Manifest) -> None:
    with pytest.raises(UntrustedFileError, match="canonical"):
        decode_manifest(json.dumps(json.loads(encode_manifest(manifest)), indent=1).encode())


@given(manifest=manifests(), data=st.data())
def test_the_stages_of_any_split_load_every_weight_file(manifest: Manifest, data: st.DataObject) -> None:
    cut = data.draw(st.integers(1, manifest.n_blocks))
    ranges = [BlockRange(0, cut)] + ([BlockRange(cut, manifest.n_blocks)] if cut < manifest.n_blocks else [])
    loaded = {file.sha256 for blocks in ranges for file in manifest.weight_files(blocks)}
    assert loaded == {f.sha256 for f in (*manifest.blocks, *manifest.before, *manifest.after)}
    assert manifest.is_first(ranges[0])
    assert manifest.is_last(ranges[-1])
    assert manifest.size_bytes() >= sum(f.size_bytes for f in {f.sha256: f for f in manifest.blocks}.values())


@given(manifest=manifests())
def test_blocks_after_the_last_are_refused(manifest: Manifest) -> None:
    with pytest.raises(ValueError, match=str(manifest.n_blocks)):
        manifest.weight_files(BlockRange(0, manifest.n_blocks + 1))


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b", "", ".hidden", "a\\b", "x" * 200, "a\x00"])
def test_a_file_name_that_could_leave_the_folder_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="file's name"):
        ModelFile(name=name, sha256="0" * 64, size_bytes=1)


def test_bad_hashes_and_sizes_are_refused() -> None:
    for sha256, size in (("0" * 63, 1), ("G" * 64, 1), ("0" * 64, -1), ("0" * 64, 2**51)):
        with pytest.raises(ValueError, match="x:"):
            ModelFile(name="x", sha256=sha256, size_bytes=size)


@pytest.mark.parametrize("data", [b"", b"{}", b"[1]", b"\xff\xfe", b"[" * 50_000, b'{"format_version": 1}'])
def test_what_is_no_manifest_is_refused(data: bytes) -> None:
    with pytest.raises(UntrustedFileError, match="manifest"):
        decode_manifest(data)


def test_a_manifest_over_the_limit_is_not_read() -> None:
    with pytest.raises(UntrustedFileError, match="over"):
        decode_manifest(b" " * (MAX_MANIFEST_BYTES + 1))
    with pytest.raises(UntrustedFileError, match="altered or cut"):
        decode_manifest(b"{}", expected=Revision("0" * 64))


@given(manifest=manifests())
def test_numbers_out_of_range_are_refused(manifest: Manifest) -> None:
    for change in (
        {"format_version": 2},
        {"blocks": ()},
        {"hidden_size": 0},
        {"context_length": 2**31},
        {"auxiliary": (ModelFile(name="config.json", sha256="0" * 64, size_bytes=2**30),)},
        {"before": (ModelFile(name="block-00000.safetensors", sha256="f" * 64, size_bytes=1),)},
        {"after": (msgspec.structs.replace(manifest.blocks[0], size_bytes=2**30),)},
    ):
        with pytest.raises(ValueError, match=r"."):
            msgspec.structs.replace(manifest, **change)
