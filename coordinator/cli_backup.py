"""`coord backup` and `coord restore`: a coordinator's state and database into one file, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from coordinator.cli_output import notes
from coordinator.state_folder import default_state

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
    from coordinator.state_copy import back_up  # the database: not for --help

    contents = back_up(file, state or default_state(), database_url)
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
    from coordinator.state_copy import restored  # the database: not for --help

    root = (state or default_state()).expanduser().absolute()
    found = restored(file, root, database_url)
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
