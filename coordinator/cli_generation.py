"""`coord generation`: which generations run and which are over, and ending one. Thin over the admin API."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated
from urllib.parse import quote, urlencode

import typer
from rich.table import Table

from coordinator.admin_client import AdminTarget
from coordinator.cli_output import cell, console, note_older, notes, plain_table, print_json, short_ids
from coordinator.cli_target import JsonOption, for_coordinator
from protocol.admin_rest import MAX_PAGE
from protocol.generation_rest import GenerationInfo, GenerationPage, GenerationState

generation_commands = typer.Typer(no_args_is_help=True, help="Generations that run, and those that are over.")
_PATH = "/admin/v1/generations"


@generation_commands.command("list")
@for_coordinator
def list_generations(
    target: AdminTarget,
    *,
    in_state: Annotated[
        GenerationState | None,
        typer.Option(
            help="Only those that run (a route was given in the last hour, and no end was reported), or are over."
        ),
    ] = None,
    key: Annotated[str | None, typer.Option(help="Only of this key, by its id.")] = None,
    model: Annotated[str | None, typer.Option(help="Only of this model.")] = None,
    n_lines: Annotated[int, typer.Option("--lines", min=1, max=MAX_PAGE, help="The newest so many.")] = 50,
    as_json: JsonOption = False,
) -> None:
    """List generations, newest first: whose, over which workers, how many tokens. Never what is in them."""
    given = {"state": in_state, "key": key, "model": model, "limit": str(n_lines)}
    query = urlencode({name: value for name, value in given.items() if value is not None})
    found = target.ask(lambda session: session.get(f"{_PATH}?{query}", GenerationPage))
    if as_json:
        print_json(found)
    elif not found.generations:
        asked = any(value is not None for value in (in_state, key, model))
        notes().print(
            "No generation is as asked" if asked else "No generation yet: client generate PROMPT", markup=False
        )
    else:
        console().print(_table(found.generations))
        note_older(found.next_cursor, n_lines)


@generation_commands.command("cancel")
@for_coordinator
def cancel_generation(
    target: AdminTarget,
    session_id: Annotated[str, typer.Argument(metavar="SESSION", help="As `coord generation list` shows it.")],
    *,
    as_json: JsonOption = False,
) -> None:
    """End a generation that runs; its client is told that an operator did so."""
    found = target.ask(lambda session: session.delete(f"{_PATH}/{quote(session_id, safe='')}", GenerationInfo))
    if as_json:
        print_json(found)
    else:
        notes().print(f"generation {found.session_id} is being ended on {len(found.hops)} workers", markup=False)


def _table(generations: Sequence[GenerationInfo]) -> Table:
    columns = ("session", "since (UTC)", "key", "model", "tokens in", "tokens out", "state", "workers")
    table = plain_table(*columns, unbroken="session")
    for info in generations:
        n_out = f"up to {info.max_tokens}" if info.n_completion_tokens is None else str(info.n_completion_tokens)
        workers = ", ".join(f"{short_ids(hop.worker_id)} {hop.blocks}" for hop in info.hops)
        table.add_row(
            info.session_id,
            info.started_at[:19].replace("T", " "),
            cell(info.key_name or info.key_id),
            cell(info.model),
            str(info.n_prompt_tokens),
            n_out,
            info.outcome or ("no end reported" if info.state == "finished" else info.state),
            cell(workers),
        )
    return table
