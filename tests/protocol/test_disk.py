from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from protocol.disk import partial_of, storage_error, storage_errors, write_atomically
from protocol.errors import StorageError


def test_a_file_is_written_whole_for_its_owner_alone_or_the_old_one_stays(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o600
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        write_atomically(tmp_path / "folder", b"three")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.ENOSPC, r"no room on the disk of .*: 1,500 bytes of a file were written and [\d,]+ bytes are free"),
        (errno.EROFS, r"can't be used by this user \(Read-only file system\): change its owner or permissions"),
        (errno.ENOTDIR, "there is a file in its place"),
        (errno.EIO, r"can't be used \(Input/output error\)"),
    ],
)
def test_people_are_told_what_to_do(tmp_path: Path, number: int, says: str) -> None:
    with pytest.raises(StorageError, match=says) as caught, storage_errors(tmp_path / "file", n_written=1500):
        raise OSError(number, os.strerror(number))
    assert "name another state folder (--state)" in caught.value.message


def test_a_place_that_another_setting_names() -> None:
    error = storage_error(Path("/nowhere/file"), OSError(errno.ENOSPC, ""), instead="name another (HF_HOME)")
    assert error.message.endswith(
        "an unknown number of bytes are free (No space left on device); make room, or name another (HF_HOME)"
    )


def test_what_a_killed_write_left_opens_the_next_to_nobody_and_leads_it_nowhere(
    tmp_path: Path,
) -> None:
    left, elsewhere = tmp_path / "secret.new", tmp_path / "elsewhere"
    left.write_text("half")
    left.chmod(0o644)
    write_atomically(tmp_path / "secret", b"whole")
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600
    elsewhere.write_text("theirs")
    left.symlink_to(elsewhere)
    write_atomically(tmp_path / "secret", b"newer")
    assert (tmp_path / "secret").read_bytes() == b"newer"
    assert not (tmp_path / "secret").is_symlink()
    assert elsewhere.read_text() == "theirs"


def test_what_another_begins_to_write_meanwhile_is_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, opened = tmp_path / "file", os.open

    def overtaken(partial: Path, flags: int, mode: int) -> int:
        partial.write_text("another's")
        return opened(partial, flags, mode)

    monkeypatch.setattr(os, "open", overtaken)
    with pytest.raises(FileExistsError):
        write_atomically(path, b"ours")
    assert partial_of(path).read_text() == "another's"
    assert not path.exists()
