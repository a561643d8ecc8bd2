from __future__ import annotations

import secrets
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from coordinator import state_folder as names
from coordinator.secret_files import GRACE, MAX_PREVIOUS, SecretFiles
from coordinator.state_folder import StateFolder
from protocol.errors import ConflictError, StorageError
from protocol.handshake import join_key

NOW = datetime(2026, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
GIVEN, OTHER = secrets.token_urlsafe(32), secrets.token_urlsafe(32)


class FaultyFolder(StateFolder):
    """A folder that fails at the n-th write from now."""

    fails_at = 0

    def write(self, name: str, text: str) -> None:
        """As the real one, until it fails."""
        self.fails_at -= 1
        if self.fails_at == 0:
            raise StorageError("the disk is full")
        super().write(name, text)


@pytest.fixture
def folder(tmp_path: Path) -> FaultyFolder:
    return FaultyFolder(tmp_path / "state")


def secret_in(folder: StateFolder) -> str:
    found = folder.read(names.JOIN_SECRET)
    assert found is not None
    return found


@pytest.mark.parametrize("fails_at", [1, 2, 3])
@pytest.mark.parametrize("grace", [timedelta(0), GRACE])
def test_a_rotation_that_is_cut_short_locks_nobody_out(
    folder: FaultyFolder, fails_at: int, grace: timedelta
) -> None:
    files = SecretFiles(folder, NOW, None)
    files.rotate_join_secret(NOW, HOUR)
    old = secret_in(folder)
    folder.fails_at = fails_at
    with pytest.raises(StorageError):
        files.rotate_join_secret(NOW, grace)
    assert files.join_keys[0] == join_key(old), "in memory all is as it was"
    again = SecretFiles(StateFolder(folder.root), NOW, None)
    assert again.join_keys[0] == join_key(old), "and after a restart"
    assert again.join_secret_since == NOW, "by the rotation before"
    assert len(again.join_secret_dates) <= 1, "what is in force isn't among the earlier ones"
    new = again.rotate_join_secret(NOW, grace)
    assert again.join_keys[0] == join_key(new)
    assert (join_key(old) in again.join_keys) == (grace > timedelta(0))


def test_without_grace_nothing_older_counts_any_more(folder: StateFolder) -> None:
    files = SecretFiles(folder, NOW, None)
    values = [secret_in(folder), files.rotate_join_secret(NOW), files.rotate_join_secret(NOW)]
    old_key = files.signing_keys[0]
    files.rotate_signing_key(NOW)
    assert len(files.join_keys) == 3
    values.append(files.rotate_join_secret(NOW, timedelta(0)))
    files.rotate_signing_key(NOW, timedelta(0))
    assert files.join_keys == (join_key(values[-1]),)
    assert len(files.signing_keys) == 1
    kept = "".join(path.read_text() for path in folder.root.iterdir() if path.is_file())
    assert not [value for value in values[:-1] if value in kept]
    assert old_key.hex() not in kept
    assert SecretFiles(folder, NOW, None).join_keys == files.join_keys


def test_what_ends_while_it_runs_is_removed_from_memory_and_disk(folder: StateFolder) -> None:
    files = SecretFiles(folder, NOW, None)
    old, old_key = secret_in(folder), files.signing_keys[0]
    files.rotate_join_secret(NOW, HOUR)
    files.rotate_signing_key(NOW, HOUR)
    files.remove_expired(NOW + HOUR / 2)
    assert len(files.join_keys) == len(files.signing_keys) == 2
    files.remove_expired(NOW + HOUR)
    assert len(files.join_keys) == len(files.signing_keys) == 1
    assert old not in (folder.read(names.PREVIOUS_SECRETS) or "")
    assert old_key.hex() not in (folder.read(names.SIGNING_KEYS) or "")


def test_a_given_secret_that_was_rotated_away_does_not_come_back(folder: StateFolder) -> None:
    files = SecretFiles(folder, NOW, GIVEN)
    assert files.is_given
    new = files.rotate_join_secret(NOW, timedelta(0))
    again = SecretFiles(folder, NOW + GRACE, GIVEN)
    assert again.join_keys == (join_key(new),)
    assert (again.is_given, again.given_was_retired_at) == (False, NOW)
    other = SecretFiles(folder, NOW, OTHER)
    assert other.is_given
    assert other.join_keys[0] == join_key(OTHER), "another one that is given counts"


def test_there_are_only_so_many_older_ones(folder: StateFolder) -> None:
    files = SecretFiles(folder, NOW, None)
    for _ in range(MAX_PREVIOUS):
        files.rotate_join_secret(NOW)
    with pytest.raises(ConflictError, match=r"--grace 0.*2026-01-09"):
        files.rotate_join_secret(NOW)
    files.rotate_join_secret(NOW, timedelta(0))
    assert len(files.join_keys) == 1


def test_values_are_not_in_what_is_shown(folder: StateFolder) -> None:
    files = SecretFiles(folder, NOW, None)
    values = [secret_in(folder), files.rotate_join_secret(NOW), files.signing_keys[0].hex()]
    shown = repr((vars(files), files.join_secret_dates, files.signing_key_dates))
    assert not [value for value in values if value in shown]


@pytest.mark.parametrize("fails_at", [1, 2, 3, 4])
def test_cut_short_the_given_secret_counts_and_not_an_older_one_of_the_folder(
    folder: FaultyFolder, fails_at: int
) -> None:
    SecretFiles(folder, NOW, None)
    files = SecretFiles(folder, NOW, GIVEN)
    folder.fails_at = fails_at
    with pytest.raises(StorageError):
        files.rotate_join_secret(NOW, timedelta(0))
    assert SecretFiles(StateFolder(folder.root), NOW, GIVEN).join_keys == (join_key(GIVEN),)
