"""`coord backup` and `coord restore`: a coordinator's state and database into one file, and back."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from coordinator import state_folder as names
from coordinator.backup import STATE_FILES, Backup, read_backup, write_backup
from coordinator.cli_output import notes
from coordinator.config import checked_database_url, default_state
from coordinator.state_folder import StateFolder, read_state_file
from coordinator.table_copy import Rows, all_rows, fill
from protocol.errors import ConfigError, ConflictError, StorageError
from protocol.version import program_version

StateOption = Annotated[
    Path | None,
    typer.Option("--state", help="The coordinator's state folder. Else BRIGADE_STATE, else the user's own."),
]
DatabaseOption = Annotated[
    str | None,
    typer.Option(
        "--database-url", help="Its database, if that isn't in the state folder. Else BRIGADE_DATABASE_URL."
    ),
]


def backup(
    file: Annotated[Path, typer.Argument(help="The file to write; it must not be there yet.")],
    *,
    state: StateOption = None,
    database_url: DatabaseOption = None,
) -> None:
    """Write what a coordinator must keep into one file. It may run meanwhile.

    Whoever has the file can be the coordinator: keep it as you keep a key.
    """
    root = state or default_state()
    if read_state_file(root / names.COORDINATOR_ID) is None:
        raise ConfigError(f"{root} is no coordinator's state folder; name it with --state")
    texts = {name: text for name in STATE_FILES if (text := read_state_file(root / name)) is not None}
    schema, tables = asyncio.run(all_rows(_database_url(root, database_url)))
    _check_owner(texts[names.COORDINATOR_ID], tables)
    contents = write_backup(
        file, state=texts, tables=tables, schema=schema, program_version=program_version(), now=datetime.now(UTC)
    )
    notes().print(
        f"{file}: coordinator {contents.coordinator_id}, {sum(contents.n_rows.values())} rows, "
        f"{file.stat().st_size} bytes. It holds the cluster's secrets: keep it where nobody else can read it. "
        "Model files are not in it.",
        markup=False,
        soft_wrap=True,
    )


def restore(
    file: Annotated[Path, typer.Argument(help="A file that `coord backup` wrote.")],
    *,
    state: StateOption = None,
    database_url: DatabaseOption = None,
) -> None:
    """Make a state folder and a database from a backup. Neither may be there yet; the file is checked first."""
    found = read_backup(file)
    root = (state or default_state()).expanduser().absolute()
    _restore(found, root, database_url or os.environ.get("BRIGADE_DATABASE_URL"))
    models = [row["name"] for row in found.tables.get("models", ())]
    note = f" Add the model files again (`coord model add`): {', '.join(models)}." if models else ""
    notes().print(
        f"{root}: coordinator {found.contents.coordinator_id} as it was at "
        f"{found.contents.created_at:%Y-%m-%d %H:%M} UTC, {sum(found.contents.n_rows.values())} rows.{note} Start "
        "it with `coord serve`, and never beside the one that it was taken from. Secrets that were rotated since "
        "count again, and the newer ones don't: rotate them again (`coord secret`).",
        markup=False,
        soft_wrap=True,
    )


def _check_owner(coordinator_id: str, tables: Rows) -> None:
    """A folder and a database that don't belong together are no coordinator's state."""
    settings = {row["key"]: row["value"] for row in tables.get("settings", ())}
    owner = settings.get("coordinator_id")
    if owner != coordinator_id:
        raise ConfigError(
            f"the database is {f'coordinator {owner}' if owner else 'no coordinator'}'s, and the state folder is "
            f"{coordinator_id}'s: name the database that this one uses (--database-url)"
        )


def _restore(found: Backup, root: Path, database_url: str | None) -> None:
    """The folder gets its name last: it is there whole or not at all."""
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
        folder = StateFolder(making)
        for name, text in found.state.items():
            folder.write(name, text)
        url = checked_database_url(database_url) if database_url else folder.database_url
        asyncio.run(fill(url, found.contents.schema, found.tables))
        making.replace(root)
    except OSError as exc:
        raise StorageError(f"{root} can't be made ({exc.strerror or exc})") from exc
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _database_url(root: Path, named: str | None) -> str:
    url = named or os.environ.get("BRIGADE_DATABASE_URL")
    return checked_database_url(url) if url else StateFolder(root).database_url
