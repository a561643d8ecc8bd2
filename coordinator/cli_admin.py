"""`coord status`, `coord key` and `coord worker`: thin over the admin API."""

from __future__ import annotations

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
from coordinator.cli_quota import LIMITS_HELP, limits_change, limits_words, new_limits
from coordinator.cli_target import JsonOption, for_coordinator
from protocol.compatibility import knows
from protocol.errors import ConfigError, ProtocolVersionError
from protocol.key_limits import UNLIMITED
from protocol.pinned_http import CoordinatorSession
from protocol.plan_rest import PlanInfo
from protocol.quota_rest import OwnerRequest, WorkerOwner
from protocol.rest import ClusterStatus, CreatedKey, CreateKeyRequest, KeyInfo, KeyKind, KeyList, WorkerInfo

key_commands = typer.Typer(no_args_is_help=True, help="API keys of clients and operators.")
worker_commands = typer.Typer(no_args_is_help=True, help="The workers of the cluster.")


@for_coordinator
def status(target: AdminTarget, *, as_json: JsonOption = False) -> None:
    """Show the models and the workers: state, reason, and who holds which blocks."""
    found = target.ask(lambda session: session.get("/admin/v1/status", ClusterStatus))
    if as_json:
        print_json(found)
    else:
        print_status(found)


@for_coordinator
def plan(
    target: AdminTarget,
    *,
    placement: Annotated[
        str | None,
        typer.Option(help="one-stream, many-streams, balance or spread; else as the coordinator has it."),
    ] = None,
    is_applied: Annotated[
        bool,
        typer.Option(
            "--apply",
            help="Move to it now, a few workers at a time and while all that is served stays served, however small "
            "the gain.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what would be placed if nothing were yet, how fast it would be, and why workers are left out.

    Where that is much better than what is served the coordinator moves to it by itself (`coord serve --replan`):
    the last line says whether it will, and why or why not.
    """
    if is_applied and placement:
        raise ConfigError(
            "--apply goes by what the coordinator places for (`coord serve --placement`); leave --placement out"
        )
    path = "/admin/v1/plan" + (f"?placement={quote(placement, safe='')}" if placement else "")
    if is_applied:
        found = target.ask(lambda session: session.post(path, None, PlanInfo))
    else:
        found = target.ask(lambda session: session.get(path, PlanInfo))
    if as_json:
        print_json(found)
    else:
        console().print(plan_table(found))


@key_commands.command("create")
@for_coordinator
def create_key(
    target: AdminTarget,
    name: Annotated[str, typer.Argument(help="What the key is for; shown by `coord key list`.")],
    *,
    kind: Annotated[KeyKind, typer.Option(help="A client may generate; an admin may do everything.")] = "client",
    limit: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help=f"{LIMITS_HELP}. May be repeated.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make an API key and print it. It can't be shown again: the coordinator keeps only a hash."""
    request = CreateKeyRequest(name=name, kind=kind, limits=new_limits(limit or ()))
    created = target.ask(lambda session: _created(session, request))
    if as_json:
        print_json(created)
    else:
        notes().print(f"{kind} key {created.key_id}; it is shown only this once:")
        typer.echo(created.key)


@key_commands.command("limits")
@for_coordinator
def key_limits(
    target: AdminTarget,
    key_id: Annotated[str, typer.Argument(help="The key's id, as `coord key list` shows it.")],
    changes: Annotated[
        list[str], typer.Argument(metavar="NAME=VALUE...", help=f"{LIMITS_HELP}. NAME=none takes a limit away.")
    ],
    *,
    as_json: JsonOption = False,
) -> None:
    """Change what a key may use; limits that aren't named stay. It holds from the next generation on."""
    change, path = limits_change(changes), f"/admin/v1/keys/{quote(key_id, safe='')}/limits"
    key = target.ask(lambda session: session.patch(path, change, KeyInfo))
    if as_json:
        print_json(key)
    else:
        notes().print(
            f"limits of key {key.key_id} ({printable(key.name)}): {limits_words(key.limits)}",
            markup=False,
            soft_wrap=True,
        )


@key_commands.command("list")
@for_coordinator
def list_keys(target: AdminTarget, *, as_json: JsonOption = False) -> None:
    """List the API keys, without their secrets."""
    keys = target.ask(lambda session: session.get("/admin/v1/keys", KeyList))
    if as_json:
        print_json(keys)
    else:
        console().print(key_table(keys.keys))


@key_commands.command("revoke")
@for_coordinator
def revoke_key(
    target: AdminTarget,
    key_id: Annotated[str, typer.Argument(help="The key's id, as `coord key list` shows it.")],
    *,
    as_json: JsonOption = False,
) -> None:
    """Refuse a key from now on, for good. Generations that it began run to their end."""
    path = f"/admin/v1/keys/{quote(key_id, safe='')}"
    key = target.ask(lambda session: session.delete(path, KeyInfo))
    if as_json:
        print_json(key)
    else:
        notes().print(f"key {key.key_id} ({printable(key.name)}) is revoked", markup=False)


async def _created(session: CoordinatorSession, request: CreateKeyRequest) -> CreatedKey:
    version = await session.greet()
    if request.limits != UNLIMITED and not knows(CreateKeyRequest, "limits", version):
        raise ProtocolVersionError(
            f"the coordinator speaks protocol {version}, which has no limits of keys: update it, or leave --limit "
            "out"
        )
    return await session.post("/admin/v1/keys", request, CreatedKey)


@worker_commands.command("owner")
@for_coordinator
def set_owner(
    target: AdminTarget,
    worker_id: Annotated[str, typer.Argument(help="The worker's id, or its beginning as `coord status` shows it.")],
    owner: Annotated[str, typer.Argument(help="A label: a person or a group. Empty: nobody's in particular.")],
    *,
    as_json: JsonOption = False,
) -> None:
    """Say whose machine a worker is: from now on what it gives is counted for that owner."""
    path = f"/admin/v1/workers/{quote(worker_id, safe='')}/owner"
    request = OwnerRequest(owner=owner)
    worker = target.ask(lambda session: session.patch(path, request, WorkerOwner))
    if as_json:
        print_json(worker)
    else:
        notes().print(f"worker {worker.worker_id} is {printable(worker.owner) or 'nobody'}'s", markup=False)


@worker_commands.command("list")
@for_coordinator
def list_workers(target: AdminTarget, *, as_json: JsonOption = False) -> None:
    """List the workers: state, reason, blocks, device, sessions."""
    found = target.ask(lambda session: session.get("/admin/v1/status", ClusterStatus))
    if as_json:
        print_json(found.workers)
    else:
        console().print(worker_table(found.workers))


@worker_commands.command("drain")
@for_coordinator
def drain_worker(
    target: AdminTarget,
    worker_id: Annotated[str, typer.Argument(help="The worker's id, or its beginning as `coord status` shows it.")],
    *,
    as_json: JsonOption = False,
) -> None:
    """Have a worker leave: once others hold its blocks it takes nothing new, finishes what runs, and goes.

    It waits 60 s at most for others to load them, and not at all if nobody has room: `coord status` says which.
    """
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
