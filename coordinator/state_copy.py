"""A coordinator's state folder and database into one file, and back. Blocks."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from coordinator import state_folder as names
from coordinator.backup import STATE_FILES, Backup, Contents, read_backup, write_backup
from coordinator.config import checked_database_url
from coordinator.state_folder import StateFolder, read_state_file
from coordinator.table_copy import Rows, all_rows, fill
from protocol.errors import ConfigError, ConflictError, StorageError
from protocol.version import program_version


def back_up(file: Path, root: Path, database_url: str | None) -> Contents:
    """Write to `file` what is in the folder `root` and in its database, which may be another (`database_url`).

    Raises:
        ConfigError: the folder is no coordinator's, or the database is another's.
        StorageError: something can't be read, or the file not written.
    """
    if read_state_file(root / names.COORDINATOR_ID) is None:
        raise ConfigError(f"{root} is no coordinator's state folder; name it with --state")
    texts = {name: text for name in STATE_FILES if (text := read_state_file(root / name)) is not None}
    schema, tables = asyncio.run(all_rows(_named_database(database_url) or StateFolder(root).database_url))
    _check_owner(texts[names.COORDINATOR_ID], tables)
    return write_backup(
        file, state=texts, tables=tables, schema=schema, program_version=program_version(), now=datetime.now(UTC)
    )


def restored(file: Path, root: Path, database_url: str | None) -> Backup:
    """Make the folder `root`, and the database, of what `file` holds, which is checked first. What it held.

    Raises:
        ConfigError: the database can't be used.
        ConflictError: the folder or the database has something in it.
        StorageError: the file can't be read or is no backup, or folder or database can't be made.
    """
    found = read_backup(file)
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise ConflictError(
            f"{root} isn't empty: nothing is written over; name a folder that isn't there (--state)"
        )
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        making = Path(tempfile.mkdtemp(dir=root.parent, prefix=f".{root.name}-restoring-"))
    except OSError as exc:
        raise StorageError(f"{root} can't be made ({exc.strerror or exc})") from exc
    try:
        _fill(making, found, database_url)
        making.replace(root)  # the folder gets its name last: it is there whole or not at all
    except OSError as exc:
        raise StorageError(f"{root} can't be made ({exc.strerror or exc})") from exc
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return found


def _fill(making: Path, found: Backup, database_url: str | None) -> None:
    folder = StateFolder(making)
    for name, text in found.state.items():
        folder.write(name, text)
    url = _named_database(database_url) or folder.database_url
    asyncio.run(fill(url, found.contents.schema, found.tables))


def _check_owner(coordinator_id: str, tables: Rows) -> None:
    """A folder and a database that don't belong together are no coordinator's state."""
    settings = {row["key"]: row["value"] for row in tables.get("settings", ())}
    owner = settings.get("coordinator_id")
    if owner != coordinator_id:
        raise ConfigError(
            f"the database is {f'coordinator {owner}' if owner else 'no coordinator'}'s, and the state folder is "
            f"{coordinator_id}'s: name the database that this one uses (--database-url)"
        )


def _named_database(option: str | None) -> str | None:
    """The database that option or variable names; None: the one in the state folder is meant."""
    url = option or os.environ.get("BRIGADE_DATABASE_URL")
    return checked_database_url(url) if url else None
