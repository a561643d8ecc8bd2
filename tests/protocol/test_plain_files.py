"""Files opened as they are, on systems that have flags for it and on those that don't."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from protocol.plain_files import open_plain, open_without_waiting, read_at

LACKING = {"posix": (), "windows": ("O_NOFOLLOW", "O_CLOEXEC", "O_NONBLOCK", "pread")}


@pytest.fixture(params=LACKING)
def _system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LACKING[request.param]:
        monkeypatch.delattr(os, name, raising=False)


@pytest.mark.usefixtures("_system")
def test_a_link_is_refused_and_a_file_is_read_at_any_place(tmp_path: Path) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    written = open_plain(file, os.O_RDWR | os.O_CREAT)
    os.write(written, b"0\r\n3456789")
    os.close(written)
    link.symlink_to(file)
    with pytest.raises(OSError, match="symbolic links"):
        open_plain(link, os.O_RDWR | os.O_CREAT)
    with pytest.raises(OSError, match="symbolic links"):
        open_without_waiting(link)
    reading = open_without_waiting(file)
    assert not os.get_inheritable(reading)
    assert [read_at(reading, 4, 3), read_at(reading, 3, 0), read_at(reading, 9, 8)] == [b"3456", b"0\r\n", b"89"]
    os.close(reading)
