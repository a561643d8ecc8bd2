from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from protocol.errors import NotFoundError, StorageError, UntrustedFileError
from protocol.ids import FileHash
from worker.files import FileCache


def sha(data: bytes) -> FileHash:
    return FileHash(hashlib.sha256(data).hexdigest())


def put(cache: FileCache, data: bytes, now_s: float = 0.0) -> FileHash:
    cache.put(sha(data), data, now_s)
    return sha(data)


def test_a_stored_file_is_found_again_by_the_next_start(tmp_path: Path) -> None:
    name = put(FileCache(tmp_path), b"weights")
    again = FileCache(tmp_path)
    assert again.hashes() == (name,)
    assert again.checked_path(name).read_bytes() == b"weights"
    assert again.total_size() == 7


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "A" * 64, "g" * 64, "a" * 63, "a" * 64 + "/"])
def test_other_names_than_hashes_are_refused(tmp_path: Path, name: str) -> None:
    cache = FileCache(tmp_path)
    with pytest.raises(NotFoundError):
        cache.path(FileHash(name))
    with pytest.raises(NotFoundError):
        cache.part_path(FileHash(name))


def test_an_altered_file_is_noticed_and_removed(tmp_path: Path) -> None:
    cache = FileCache(tmp_path)
    name = put(cache, b"weights")
    path = cache.path(name)
    path.chmod(0o600)
    path.write_bytes(b"altered")
    assert cache.hashes() == ()
    assert not cache.find(name)
    assert not path.exists()


def test_a_file_swapped_for_a_link_is_refused(tmp_path: Path) -> None:
    cache = FileCache(tmp_path / "cache")
    name = put(cache, b"weights")
    (tmp_path / "elsewhere").write_bytes(b"weights")
    cache.path(name).unlink()
    cache.path(name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NotFoundError):
        cache.checked_path(name)


def test_a_file_that_was_only_touched_is_hashed_again_and_kept(tmp_path: Path) -> None:
    cache = FileCache(tmp_path)
    name = put(cache, b"weights")
    os.utime(cache.path(name), ns=(1, 1))
    assert cache.hashes() == ()
    assert cache.find(name)
    assert cache.hashes() == (name,)


def test_a_file_that_goes_while_it_is_hashed_is_not_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = FileCache(tmp_path)
    name = put(cache, b"weights")
    os.utime(cache.path(name), ns=(1, 1))

    def hashed_and_gone(path: Path) -> str:
        path.unlink()
        return name

    monkeypatch.setattr("worker.files.file_sha256", hashed_and_gone)
    with pytest.raises(NotFoundError):
        cache.checked_path(name)
    assert cache.hashes() == ()


def test_files_survive_a_lost_index(tmp_path: Path) -> None:
    name = put(FileCache(tmp_path), b"weights")
    (tmp_path / "index.json").write_bytes(b"{broken")
    cache = FileCache(tmp_path)
    assert cache.hashes() == ()
    assert cache.find(name)


def test_what_lies_there_unchecked_is_known_and_what_is_gone_counts_no_longer(tmp_path: Path) -> None:
    cache = FileCache(tmp_path)
    sha256 = put(cache, b"abc")
    assert not cache.has_unchecked(sha256)
    os.utime(cache.path(sha256), ns=(1, 1))
    assert cache.has_unchecked(sha256)
    cache.path(sha256).unlink()
    assert not cache.has_unchecked(sha256)
    assert cache.total_size() == 0


def test_a_part_of_the_wrong_size_gets_no_name(tmp_path: Path) -> None:
    cache = FileCache(tmp_path)
    cache.part_path(sha(b"weights")).write_bytes(b"wei")
    with pytest.raises(UntrustedFileError, match="3 bytes instead of 7"):
        cache.admit(sha(b"weights"), 7, 0.0)


def test_the_least_recently_used_goes_first_and_what_is_kept_stays(tmp_path: Path) -> None:
    cache = FileCache(tmp_path, limit_bytes=30)
    a, b, c = (put(cache, letter * 10, now_s) for now_s, letter in enumerate((b"a", b"b", b"c")))
    cache.touch([a], 9.0)
    assert cache.make_room(10, keep={b}) == 1
    assert set(cache.hashes()) == {a, b}
    assert not cache.path(c).exists()
    assert cache.make_room(10, keep={b}) == 0


def test_what_does_not_fit_says_the_numbers_and_removes_nothing(tmp_path: Path) -> None:
    cache = FileCache(tmp_path, limit_bytes=3_000_000)
    name = put(cache, bytes(2_000_000))
    with pytest.raises(StorageError, match=r"4\.0 MB .* limit is 3\.0 MB.* 2\.0 MB of older"):
        cache.make_room(4_000_000, keep=())
    assert cache.hashes() == (name,)


def test_parts_count_against_the_limit_and_can_be_forgotten(tmp_path: Path) -> None:
    cache = FileCache(tmp_path, limit_bytes=30)
    mine, other = sha(b"mine"), sha(b"other")
    cache.part_path(mine).write_bytes(b"0123456789")
    cache.part_path(other).write_bytes(b"0123456789")
    with pytest.raises(StorageError):
        cache.make_room(20, keep=())
    assert cache.forget_parts([mine]) == 1
    assert cache.make_room(20, keep=()) == 0
    assert (cache.part_size(mine), cache.part_size(other)) == (10, 0)


def test_a_full_disk_says_so(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="free some space"):
        FileCache(tmp_path).make_room(2**62, keep=())


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="can't be used"):
        FileCache(tmp_path / "file")
