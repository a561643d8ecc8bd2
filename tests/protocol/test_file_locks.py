"""Locks between processes."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from protocol.file_locks import try_lock

HOLD_AND_DIE = (
    "import os, sys; from pathlib import Path; from protocol.file_locks import try_lock\n"
    "lock = try_lock(Path(sys.argv[1]))\n"
    "print('held' if lock else 'refused', flush=True); os._exit(9)\n"
)


def other_process(path: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", HOLD_AND_DIE, str(path)], check=False, timeout=30, capture_output=True, text=True
    )
    return done.stdout.strip()


def test_one_at_a_time_across_processes_and_within_one(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    held = try_lock(path)
    assert held is not None
    assert try_lock(path) is None
    assert other_process(path) == "refused"
    held.release()
    assert other_process(path) == "held"


def test_a_holder_that_dies_lets_go(tmp_path: Path) -> None:
    assert other_process(tmp_path / "lock") == "held"
    again = try_lock(tmp_path / "lock")
    assert again is not None
    again.release()


def test_the_file_is_private_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    held = try_lock(path)
    assert held is not None
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    held.release()


def test_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="file"):
        try_lock(tmp_path / "file" / "lock")
