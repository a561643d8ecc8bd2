"""`coord author`: whose signatures of models count where models must be signed. Thin over the admin API."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote

import typer
from rich.table import Table

from coordinator.admin_client import AdminTarget
from coordinator.cli_output import cell, console, notes, plain_table, print_json, printable
from coordinator.cli_target import JsonOption, for_coordinator
from protocol.author_keys import author_key_argument
from protocol.author_rest import AddAuthorRequest, AuthorInfo, AuthorList
from protocol.error_forms import repeated
from protocol.errors import ConfigError, NotFoundError

author_commands = typer.Typer(no_args_is_help=True, help="Authors of models, whose signatures count.")


@author_commands.command("add")
@for_coordinator
def add_author(
    target: AdminTarget,
    name: Annotated[str, typer.Argument(help="What you call whoever holds the key.")],
    key: Annotated[
        str, typer.Argument(help="His public key, ed25519:..., or the .pub file of `coord model keygen`.")
    ],
    *,
    as_json: JsonOption = False,
) -> None:
    """Trust an author. Get the key from himself: whatever it signs may be served where models must be signed."""
    author_key = author_key_argument(key, "KEY")
    try:
        request = AddAuthorRequest(name=name, key=author_key)
    except ValueError as exc:
        raise ConfigError(f"the author can't be called so: {exc}") from exc
    author = target.ask(lambda session: session.post("/admin/v1/authors", request, AuthorInfo))
    if as_json:
        print_json(author)
        return
    models = f"; signed by him here: {', '.join(author.models)}" if author.models else ""
    notes().print(f"{author.name} is trusted, with {author.key}{models}", markup=False, soft_wrap=True)


@author_commands.command("list")
@for_coordinator
def list_authors(target: AdminTarget, *, as_json: JsonOption = False) -> None:
    """List the trusted authors, and the models here that they signed."""
    found = target.ask(lambda session: session.get("/admin/v1/authors", AuthorList))
    if as_json:
        print_json(found)
    elif not found.authors:
        notes().print("no author is trusted: coord author add NAME KEY", markup=False)
    else:
        console().print(author_table(found))


@author_commands.command("remove")
@for_coordinator
def remove_author(
    target: AdminTarget,
    author: Annotated[str, typer.Argument(help="The author's name or key, as `coord author list` shows it.")],
    *,
    as_json: JsonOption = False,
) -> None:
    """Trust an author no longer. Where models must be signed, no new generations begin with those he signed."""
    found = target.ask(lambda session: session.get("/admin/v1/authors", AuthorList))
    key = next((known.key for known in found.authors if author in (known.key, known.name)), None)
    if key is None:
        raise NotFoundError(f"no trusted author is called {repeated(author)}; `coord author list` shows who is")
    path = f"/admin/v1/authors/{quote(key, safe='')}"
    removed = target.ask(lambda session: session.delete(path, AuthorInfo))
    if as_json:
        print_json(removed)
        return
    models = f"; signed by him here: {', '.join(removed.models)}" if removed.models else ""
    notes().print(f"{printable(removed.name)} is trusted no longer{models}", markup=False, soft_wrap=True)


def author_table(found: AuthorList) -> Table:
    """Authors with their keys and models."""
    table = plain_table("author", "key", "added", "by", "models")
    for author in found.authors:
        models = ", ".join(author.models)
        table.add_row(cell(author.name), author.key, author.added_at[:10], cell(author.added_by), cell(models))
    return table
