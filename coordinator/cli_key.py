"""`coord key`: API keys of clients and operators. Thin over the admin API."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote

import typer
from msgspec import UNSET, UnsetType
from rich.table import Table

from coordinator import state_folder as names
from coordinator.admin_client import AdminTarget, all_pages, changed_as_read
from coordinator.cli_output import (
    cell,
    console,
    minute,
    notes,
    plain_table,
    print_answer,
    print_done,
    print_json,
    printable,
)
from coordinator.cli_owners import owner_label, whose
from coordinator.cli_quota import LIMITS_HELP, limits_change, limits_words, new_limits
from coordinator.cli_target import JsonOption, for_coordinator
from coordinator.cli_times import seconds_of
from coordinator.state_folder import read_state_file
from protocol.admin_rest import MAX_GRACE_S, ChangeKeyRequest, RotatedKey, RotateKeyRequest
from protocol.compatibility import knows
from protocol.errors import ProtocolVersionError, StorageError
from protocol.ids import ModelName
from protocol.key_limits import UNLIMITED
from protocol.key_rest import CreatedKey, CreateKeyRequest, KeyInfo, KeyKind, KeyList
from protocol.quota_rest import OwnerRequest
from protocol.rest import ModelList

if TYPE_CHECKING:
    from protocol.pinned_http import CoordinatorSession

key_commands = typer.Typer(no_args_is_help=True, help="API keys of clients and operators.")
KeyArgument = Annotated[str, typer.Argument(metavar="KEY", help="The key's id, as `coord key list` shows it.")]


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
    owner: Annotated[
        str,
        typer.Option(help="Whose it is: what that owner's workers (`coord worker owner`) give may raise it."),
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """Make an API key and print it. It can't be shown again: the coordinator keeps only a hash.

    Limits that aren't named are those of `coord settings` (default_tokens_per_min and others).
    """
    request = CreateKeyRequest(name=name, kind=kind, limits=new_limits(limit or ()), owner=owner_label(owner))
    created = target.ask(lambda session: _created(session, request))
    _warn_of_models(target, request.limits.models)
    if as_json:
        print_json(created)
    else:
        notes().print(f"{kind} key {created.key_id}; it is shown only this once:")
        typer.echo(created.key)


@key_commands.command("limits")
@for_coordinator
def key_limits(
    target: AdminTarget,
    key_id: KeyArgument,
    changes: Annotated[
        list[str], typer.Argument(metavar="NAME=VALUE...", help=f"{LIMITS_HELP}. NAME=none takes a limit away.")
    ],
    *,
    as_json: JsonOption = False,
) -> None:
    """Change what a key may use; limits that aren't named stay. It holds from the next generation on."""
    change = limits_change(changes)
    path = _path(key_id)
    key = target.ask(
        lambda session: changed_as_read(session, path, KeyInfo, change, KeyInfo, change_path=f"{path}/limits")
    )
    _warn_of_models(target, change.models)
    print_done(
        key, f"limits of key {key.key_id} ({printable(key.name)}): {limits_words(key.limits)}", as_json=as_json
    )


@key_commands.command("list")
@for_coordinator
def list_keys(
    target: AdminTarget,
    *,
    kind: Annotated[KeyKind | None, typer.Option(help="Only keys of this kind.")] = None,
    name: Annotated[str | None, typer.Option(help="Only keys with this in their name.")] = None,
    is_revoked: Annotated[
        bool | None, typer.Option("--revoked/--not-revoked", help="Only keys that are revoked, or aren't.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the API keys, without their secrets."""
    given = {"kind": kind, "name": name, "is_revoked": None if is_revoked is None else str(is_revoked).lower()}
    pages = target.ask(lambda session: all_pages(session, "/admin/v1/keys", given, KeyList))
    keys = tuple(key for page in pages for key in page.keys)
    print_answer(KeyList(keys=keys), key_table(keys), as_json=as_json)


@key_commands.command("show")
@for_coordinator
def show_key(target: AdminTarget, key_id: KeyArgument, *, as_json: JsonOption = False) -> None:
    """Show a key: its name, kind and limits, and whether it is good."""
    key = target.ask(lambda session: session.get(_path(key_id), KeyInfo))
    if as_json:
        print_json(key)
    else:
        console().print(key_table((key,)))
        console().print(f"limits: {limits_words(key.limits)}", markup=False)


@key_commands.command("rename")
@for_coordinator
def rename_key(
    target: AdminTarget,
    key_id: KeyArgument,
    name: Annotated[str, typer.Argument(help="What the key is for from now on.")],
    *,
    as_json: JsonOption = False,
) -> None:
    """Give a key another name; what it opens stays the same."""
    request = ChangeKeyRequest(name=name)
    key = target.ask(lambda session: changed_as_read(session, _path(key_id), KeyInfo, request, KeyInfo))
    print_done(key, f"key {key.key_id} is {printable(key.name)} now", as_json=as_json)


@key_commands.command("owner")
@for_coordinator
def set_owner(
    target: AdminTarget,
    key_id: KeyArgument,
    owner: Annotated[
        str, typer.Argument(help="Whose it is from now on: a person or a group; none: nobody's in particular.")
    ],
    *,
    as_json: JsonOption = False,
) -> None:
    """Say whose a key is. What that owner's workers give may raise its priority (`coord settings`)."""
    request = OwnerRequest(owner=owner_label(owner))
    path = _path(key_id)
    key = target.ask(
        lambda session: changed_as_read(session, path, KeyInfo, request, KeyInfo, change_path=f"{path}/owner")
    )
    print_done(key, f"key {key.key_id} ({printable(key.name)}) is {whose(key.owner)} now", as_json=as_json)


@key_commands.command("rotate")
@for_coordinator
def rotate_key(
    target: AdminTarget,
    key_id: KeyArgument,
    *,
    grace: Annotated[
        str,
        typer.Option(
            metavar="TIME", help="How long the old one is good: 0 (no longer at all), 90m, 12h, 7d at most."
        ),
    ] = "1h",
    as_json: JsonOption = False,
) -> None:
    """Give a key a new secret and print it; id, name and limits stay. It can't be shown again."""
    request = RotateKeyRequest(grace_s=seconds_of("--grace", grace, most_days=MAX_GRACE_S // 86_400))
    rotated = target.ask(lambda session: session.post(f"{_path(key_id)}/rotate", request, RotatedKey))
    if as_json:
        print_json(rotated)
    else:
        old = f"is good until {minute(rotated.old_until)}" if request.grace_s else "isn't good any more"
        notes().print(f"key {rotated.key_id}; the old one {old}. Only this once:")
        typer.echo(rotated.key)
        _note_file(target, rotated.key_id, "holds the old one: put the new one there")


@key_commands.command("revoke")
@for_coordinator
def revoke_key(
    target: AdminTarget,
    key_id: KeyArgument,
    *,
    as_json: JsonOption = False,
) -> None:
    """Refuse a key from now on, for good. What runs of it ends within seconds, and says why."""
    key = target.ask(lambda session: session.delete(_path(key_id), KeyInfo))
    print_done(key, f"key {key.key_id} ({printable(key.name)}) is revoked", as_json=as_json)
    if not as_json:
        _note_file(
            target, key.key_id, "holds it: without that file, the coordinator makes a new one at its next start"
        )


def _note_file(target: AdminTarget, key_id: str, what: str) -> None:
    """Say what a state folder's file needs that holds this key: commands here take it unless told another."""
    for file in (target.state / names.ADMIN_KEY, target.state / names.CLIENT_KEY):
        with suppress(StorageError):  # it was done all the same, and this folder may be none of ours
            if (read_state_file(file) or "").split(".")[1:2] == [key_id]:
                notes().print(f"warning: {file} {what}", markup=False, soft_wrap=True, style="yellow")


def _warn_of_models(target: AdminTarget, names: tuple[ModelName, ...] | UnsetType | None) -> None:
    """Say which models of a limit aren't served: they may come later, or be a slip."""
    if names is UNSET or not names:
        return
    pages = target.ask(lambda session: all_pages(session, "/admin/v1/models", {}, ModelList))
    served = [model.name for page in pages for model in page.models]
    if unserved := [name for name in names if name not in served]:
        notes().print(
            f"warning: no model is served as {', '.join(unserved)} now; there are: {', '.join(served) or 'none'}",
            markup=False,
            soft_wrap=True,
        )


async def _created(session: CoordinatorSession, request: CreateKeyRequest) -> CreatedKey:
    version = await session.greet()
    if request.owner and not knows(CreateKeyRequest, "owner", version):
        raise ProtocolVersionError(
            f"the coordinator speaks protocol {version}, which has no owners of keys: update it, or leave "
            "--owner out"
        )
    if request.limits != UNLIMITED and not knows(CreateKeyRequest, "limits", version):
        raise ProtocolVersionError(
            f"the coordinator speaks protocol {version}, which has no limits of keys: update it, or leave --limit "
            "out"
        )
    return await session.post("/admin/v1/keys", request, CreatedKey)


def key_table(keys: tuple[KeyInfo, ...]) -> Table:
    """API keys; the secrets aren't known."""
    table = plain_table("key", "name", "kind", "owner", "created", "revoked", "old one until")
    for key in keys:
        dates = (minute(key.created_at), minute(key.revoked_at), minute(key.old_until))
        table.add_row(key.key_id, cell(key.name), key.kind, cell(key.owner), *dates)
    return table


def _path(key_id: str) -> str:
    return f"/admin/v1/keys/{quote(key_id, safe='')}"
