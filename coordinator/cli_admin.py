"""`coord status`, `coord key` and `coord worker`: thin over the admin API."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import typer

from coordinator.admin_client import AdminTarget
from coordinator.cli_output import (
    console,
    key_table,
    notes,
    plan_table,
    print_json,
    print_status,
    printable,
    short_ids,
    worker_table,
)
from protocol.plan_rest import PlanInfo
from protocol.rest import ClusterStatus, CreatedKey, CreateKeyRequest, KeyInfo, KeyKind, KeyList, WorkerInfo

UrlOption = Annotated[
    str | None,
    typer.Option("--url", help="The coordinator, https://host:port. Else BRIGADE_URL, else the state folder's."),
]
KeyFileOption = Annotated[
    Path | None,
    typer.Option(
        "--admin-key-file", help="File with an admin key. Else BRIGADE_ADMIN_KEY, else the state folder's."
    ),
]
StateOption = Annotated[
    Path | None,
    typer.Option(
        "--state", help="The coordinator's state folder on this machine. Else BRIGADE_STATE, else the user's own."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]

key_commands = typer.Typer(no_args_is_help=True, help="API keys of clients and operators.")
worker_commands = typer.Typer(no_args_is_help=True, help="The workers of the cluster.")


def status(
    *,
    as_json: JsonOption = False,
    url: UrlOption = None,
    admin_key_file: KeyFileOption = None,
    state: StateOption = None,
) -> None:
    """Show the models and the workers: state, reason, and who holds which blocks."""
    target = AdminTarget.found(url=url, key_file=admin_key_file, state=state)
    found = target.ask(lambda session: session.get("/admin/v1/status", ClusterStatus))
    if as_json:
        print_json(found)
    else:
        print_status(found)


def plan(
    *,
    placement: Annotated[
        str | None,
        typer.Option(help="one-stream, many-streams, balance or spread; else as the coordinator has it."),
    ] = None,
    as_json: JsonOption = False,
    url: UrlOption = None,
    admin_key_file: KeyFileOption = None,
    state: StateOption = None,
) -> None:
    """Show what would be placed if nothing were yet, how fast it would be, and why workers are left out."""
    target = AdminTarget.found(url=url, key_file=admin_key_file, state=state)
    path = "/admin/v1/plan" + (f"?placement={quote(placement, safe='')}" if placement else "")
    found = target.ask(lambda session: session.get(path, PlanInfo))
    if as_json:
        print_json(found)
    else:
        console().print(plan_table(found))


@key_commands.command("create")
def create_key(
    name: Annotated[str, typer.Argument(help="What the key is for; shown by `coord key list`.")],
    *,
    kind: Annotated[KeyKind, typer.Option(help="A client may generate; an admin may do everything.")] = "client",
    as_json: JsonOption = False,
    url: UrlOption = None,
    admin_key_file: KeyFileOption = None,
    state: StateOption = None,
) -> None:
    """Make an API key and print it. It can't be shown again: the coordinator keeps only a hash."""
    target = AdminTarget.found(url=url, key_file=admin_key_file, state=state)
    request = CreateKeyRequest(name=name, kind=kind)
    created = target.ask(lambda session: session.post("/admin/v1/keys", request, CreatedKey))
    if as_json:
        print_json(created)
    else:
        notes().print(f"{kind} key {created.key_id}; it is shown only this once:")
        typer.echo(created.key)


@key_commands.command("list")
def list_keys(
    *,
    as_json: JsonOption = False,
    url: UrlOption = None,
    admin_key_file: KeyFileOption = None,
    state: StateOption = None,
) -> None:
    """List the API keys, without their secrets."""
    target = AdminTarget.found(url=url, key_file=admin_key_file, state=state)
    keys = target.ask(lambda session: session.get("/admin/v1/keys", KeyList))
    if as_json:
        print_json(keys)
    else:
        console().print(key_table(keys.keys))


@key_commands.command("revoke")
def revoke_key(
    key_id: Annotated[str, typer.Argument(help="The key's id, as `coord key list` shows it.")],
    *,
    as_json: JsonOption = False,
    url: UrlOption = None,
    admin_key_file: KeyFileOption = None,
    state: StateOption = None,
) -> None:
    """Refuse a key from now on, for good. Generations that it began run to their end."""
    target = AdminTarget.found(url=url, key_file=admin_key_file, state=state)
    path = f"/admin/v1/keys/{quote(key_id, safe='')}"
    key = target.ask(lambda session: session.delete(path, KeyInfo))
    if as_json:
        print_json(key)
    else:
        notes().print(f"key {key.key_id} ({printable(key.name)}) is revoked", markup=False)


@worker_commands.command("list")
def list_workers(
    *,
    as_json: JsonOption = False,
    url: UrlOption = None,
    admin_key_file: KeyFileOption = None,
    state: StateOption = None,
) -> None:
    """List the workers: state, reason, blocks, device, sessions."""
    target = AdminTarget.found(url=url, key_file=admin_key_file, state=state)
    found = target.ask(lambda session: session.get("/admin/v1/status", ClusterStatus))
    if as_json:
        print_json(found.workers)
    else:
        console().print(worker_table(found.workers))


@worker_commands.command("drain")
def drain_worker(
    worker_id: Annotated[str, typer.Argument(help="The worker's id, or its beginning as `coord status` shows it.")],
    *,
    as_json: JsonOption = False,
    url: UrlOption = None,
    admin_key_file: KeyFileOption = None,
    state: StateOption = None,
) -> None:
    """Have a worker leave: once others hold its blocks it takes nothing new, finishes what runs, and goes.

    It waits 60 s at most for others to load them, and not at all if nobody has room: `coord status` says which.
    """
    target = AdminTarget.found(url=url, key_file=admin_key_file, state=state)
    path = f"/admin/v1/workers/{quote(worker_id, safe='')}/drain"
    worker = target.ask(lambda session: session.post(path, None, WorkerInfo))
    if as_json:
        print_json(worker)
    else:
        notes().print(
            f"worker {worker.worker_id} is {worker.state}: {short_ids(printable(worker.reason))}",
            markup=False,
            soft_wrap=True,
        )
