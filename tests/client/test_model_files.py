from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from client.model_files import FileCache, fetched_model
from protocol.errors import UntrustedFileError
from protocol.ids import FileHash, Revision
from protocol.pinned_http import pinned_session
from tests.support.scripted_cluster import scripted_cluster
from tests.support.tiny_tokenizer import tiny_files


def hash_of(data: bytes) -> FileHash:
    return FileHash(hashlib.sha256(data).hexdigest())


def kept(cache: FileCache, data: bytes) -> FileHash:
    cache.write(hash_of(data), data)
    return hash_of(data)


async def test_files_are_fetched_once_and_then_come_from_the_cache(tmp_path: Path) -> None:
    cache = FileCache(tmp_path / "cache", max_bytes=10**9)
    async with (
        scripted_cluster(tmp_path, n_workers=1) as cluster,
        pinned_session(cluster.url, cluster.api_key) as coordinator,
    ):
        first = await fetched_model(coordinator, cluster.revision, cache)
        n_fetched = len(cluster.fetched)
        second = await fetched_model(coordinator, cluster.revision, cache)
    assert first == second
    assert first.contents == tiny_files()
    assert (n_fetched, len(cluster.fetched)) == (6, 6)


async def test_a_manifest_of_another_revision_is_refused(tmp_path: Path) -> None:
    cache = FileCache(tmp_path / "cache", max_bytes=10**9)
    async with (
        scripted_cluster(tmp_path, n_workers=1) as cluster,
        pinned_session(cluster.url, cluster.api_key) as coordinator,
    ):
        with pytest.raises(UntrustedFileError, match="altered"):
            await fetched_model(coordinator, Revision("1" * 64), cache)


@pytest.mark.parametrize("change", ["cut", "longer", "altered"])
async def test_a_file_that_is_not_what_the_manifest_says_is_refused(tmp_path: Path, change: str) -> None:
    def changed(data: bytes) -> bytes:
        return {"cut": data[:-1], "longer": data + b"x" * 9, "altered": b"y" * len(data)}[change]

    cache = FileCache(tmp_path / "cache", max_bytes=10**9)
    async with (
        scripted_cluster(tmp_path, n_workers=1) as cluster,
        pinned_session(cluster.url, cluster.api_key) as coordinator,
    ):
        cluster.contents = {sha256: changed(data) for sha256, data in cluster.contents.items()}
        with pytest.raises(UntrustedFileError, match=r"\.(json|jinja) came from"):
            await fetched_model(coordinator, cluster.revision, cache)
    assert all(hash_of(path.read_bytes()) == path.name for path in (tmp_path / "cache").iterdir())


def test_a_file_altered_in_the_cache_is_removed(tmp_path: Path) -> None:
    cache = FileCache(tmp_path, max_bytes=100)
    sha256 = kept(cache, b"good")
    (tmp_path / sha256).write_bytes(b"evil")
    assert cache.read(sha256) is None
    assert list(tmp_path.iterdir()) == []


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    cache = FileCache(tmp_path, max_bytes=25)
    old, used = kept(cache, b"a" * 10), kept(cache, b"b" * 10)
    os.utime(tmp_path / old, ns=(1, 1))
    os.utime(tmp_path / used, ns=(2, 2))
    assert cache.read(old) is not None  # and so it is the newest
    new = kept(cache, b"c" * 10)
    assert {path.name for path in tmp_path.iterdir()} == {old, new}


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = FileCache(tmp_path / "file", max_bytes=100)
    assert cache.read(kept(cache, b"data")) is None
