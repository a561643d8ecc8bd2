from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from coordinator.state_folder import JOIN_SECRET, StateFolder, read_state_file
from protocol.errors import ConflictError, StorageError
from protocol.exit_codes import EXIT_STORAGE


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_folder_and_its_files_are_ours_alone(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path / "a" / "state")
    folder.write(JOIN_SECRET, "text")
    assert mode(folder.root) == 0o700
    assert mode(folder.path(JOIN_SECRET)) == 0o600
    assert folder.read(JOIN_SECRET) == "text"
    assert StateFolder(folder.root).read(JOIN_SECRET) == "text"
    assert [path.name for path in folder.root.iterdir()] == [JOIN_SECRET]


def test_a_folder_that_held_other_things_keeps_its_permissions(tmp_path: Path) -> None:
    root = tmp_path / "shared"
    root.mkdir(mode=0o755)
    root.chmod(0o755)
    StateFolder(root)
    assert mode(root) == 0o755
    StateFolder(root).write("coordinator-id", "c-1")
    StateFolder(root)
    assert mode(root) == 0o700


def test_writing_replaces_the_whole_file(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path)
    folder.write("url", "a longer text than the next")
    folder.write("url", "short\n")
    assert folder.path("url").read_text() == "short\n"
    assert folder.read("nothing") is None


def test_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StorageError, match="there is a file in its place") as caught:
            StateFolder(path)
        assert caught.value.exit_code == EXIT_STORAGE


def test_damaged_files(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\x00")
    with pytest.raises(StorageError, match="isn't text"):
        read_state_file(tmp_path / "binary")
    (tmp_path / "big").write_bytes(b"a" * (2**20 + 1))
    with pytest.raises(StorageError, match="over 1048576 bytes"):
        read_state_file(tmp_path / "big")


def test_only_one_coordinator_has_the_folder(tmp_path: Path) -> None:
    first, second = StateFolder(tmp_path), StateFolder(tmp_path)
    with first.locked(), pytest.raises(ConflictError, match="another coordinator runs on"), second.locked():
        pass
    with second.locked():
        pass


AS_NOBODY = """
import os, sys
from pathlib import Path
from coordinator.state_folder import StateFolder
from protocol.errors import StorageError
os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    StateFolder(Path(sys.argv[1]))
except StorageError as error:
    print(error)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    parent = tmp_path / "theirs"
    parent.mkdir(mode=0o700)
    for path in (parent, parent / "new"):
        done = subprocess.run(
            [sys.executable, "-c", AS_NOBODY, str(path)], capture_output=True, text=True, check=True, cwd=Path.cwd()
        )
        assert "Permission denied" in done.stdout
        assert "--state" in done.stdout


def test_what_a_killed_write_left_of_ours_is_removed_by_the_next_that_has_the_folder(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path)
    folder.write(JOIN_SECRET, "text")
    for name in ("join-secret.new", "signing-keys.json.new", "theirs.new"):
        (tmp_path / name).write_text("a secret")
    (tmp_path / "ca.key.new").mkdir()  # whoever made that had a reason: it is left, and no start fails by it
    with folder.locked():
        left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["ca.key.new", "join-secret", "lock", "theirs.new"]
