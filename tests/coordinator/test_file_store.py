"""The content-addressed store: whole files or none, stored once, clear errors when the disk says no."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from coordinator.file_store import FileStore
from protocol.errors import ConflictError, NotFoundError, StorageError
from protocol.ids import FileHash
from tests.coordinator.packing_support import files_limited_to

DATA = b"abc" * 1000
HASH = FileHash(hashlib.sha256(DATA).hexdigest())


def every_file(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()} - {"lock"}


def test_a_file_is_stored_under_its_hash_and_read_by_range(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "store")
    stored = store.put(DATA)
    assert (stored.sha256, stored.size_bytes, stored.is_new) == (HASH, len(DATA), True)
    assert every_file(store.root) == {f"files/{HASH[:2]}/{HASH}"}
    with store.open(HASH) as file:
        assert os.pread(file.fileno(), 5, 3) == DATA[3:8]
    assert store.hashes() == (HASH,)
    assert store.total_size() == store.size(HASH) == len(DATA)


def test_the_same_bytes_are_stored_once(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    assert store.put(DATA).is_new
    assert not store.put(DATA).is_new
    assert store.total_size() == len(DATA)


def test_what_is_not_committed_is_gone(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    with pytest.raises(TypeError), store.writer() as writer:
        writer.write("text")  # type: ignore[arg-type]
    with store.writer() as writer:
        writer.write(DATA)
    assert every_file(tmp_path) == set()


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "AB" * 32, "a" * 63, "a/" * 32])
def test_only_hashes_name_files(tmp_path: Path, name: str) -> None:
    with pytest.raises(NotFoundError, match="SHA-256"):
        FileStore(tmp_path).path(FileHash(name))


def test_missing_files_are_said_to_be_missing(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    assert not store.has(HASH)
    assert not store.remove(HASH)
    with pytest.raises(NotFoundError):
        store.size(HASH)
    with pytest.raises(NotFoundError):
        store.open(HASH)


def test_remove_unreferenced_keeps_what_is_named(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    store.put(DATA)
    store.put(b"other")
    assert store.remove_unreferenced({HASH}) == (1, 5)
    assert store.hashes() == (HASH,)


def test_unreferenced_files_are_not_removed_while_a_model_is_added(tmp_path: Path) -> None:
    adding, cleaning = FileStore(tmp_path), FileStore(tmp_path)
    with adding.lock():
        adding.put(DATA)
        with adding.lock():  # within the same thread it can be taken again
            pass
        with pytest.raises(ConflictError, match="adding or removing"):
            cleaning.remove_unreferenced(set())
    assert cleaning.remove_unreferenced(set()) == (1, len(DATA))


def test_leftovers_of_a_killed_writer_go_at_the_next_start_and_living_ones_stay(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from coordinator.file_store import FileStore\n"
        "store = FileStore(Path(sys.argv[1]))\n"
        "with store.writer() as writer:\n"
        "    writer.write(b'half'); os._exit(9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, timeout=30)
    assert done.returncode == 9
    assert sorted(Path(name).suffix for name in every_file(tmp_path)) == [".lock", ".part"]
    (tmp_path / "partial" / "of-an-older-version.part").write_bytes(b"half")
    store = FileStore(tmp_path)
    assert every_file(tmp_path) == set()
    with store.writer() as writer:
        writer.write(DATA)
        FileStore(tmp_path)  # another program starts meanwhile
        assert writer.commit().sha256 == HASH
    assert store.has(HASH)


def test_a_full_disk_is_a_storage_error_with_numbers_and_leaves_nothing(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    with (
        files_limited_to(1000),
        pytest.raises(
            StorageError, match=r"no room .* [\d,]+ bytes of a file were written and [\d,]+ bytes are free"
        ),
    ):
        store.put(DATA)
    assert every_file(tmp_path) == set()


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="can't be used"):
        FileStore(tmp_path / "file" / "store")


def test_storing_again_replaces_a_file_that_was_altered(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    stored = store.put(b"the right bytes")
    store.path(stored.sha256).chmod(0o600)
    store.path(stored.sha256).write_bytes(b"the right")
    again = store.put(b"the right bytes")
    assert again.sha256 == stored.sha256
    assert not again.is_new
    assert store.path(stored.sha256).read_bytes() == b"the right bytes"
