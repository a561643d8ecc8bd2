"""`coord secret`: the join secret and the signing keys, and rotating them. Thin over the admin API."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Group
from rich.text import Text

from coordinator import state_folder as names
from coordinator.admin_client import AdminTarget
from coordinator.cli_output import cell, console, minute, notes, plain_table, print_done, print_json, printable
from coordinator.cli_target import JsonOption, for_coordinator
from coordinator.cli_times import seconds_of
from coordinator.state_folder import read_state_file
from protocol.errors import ConfigError
from protocol.secret_rest import (
    MAX_SECRET_GRACE_S,
    RecentJoin,
    RotatedSecret,
    RotateSecretRequest,
    SecretDates,
    SecretsInfo,
)

secret_commands = typer.Typer(no_args_is_help=True, help="The join secret and the signing keys.")
_MOST_DAYS = MAX_SECRET_GRACE_S // 86_400
GraceOption = Annotated[
    str, typer.Option(help="How long older ones still count: 0 (not at all), 90m, 12h, 8d at most.", metavar="TIME")
]


@secret_commands.command("show")
@for_coordinator
def show_secrets(
    target: AdminTarget,
    *,
    reveal: Annotated[
        bool, typer.Option("--reveal", help="Print the join secret itself, from the state folder on this machine.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show when secrets were rotated, how long older ones count, and which workers joined lately with which."""
    if reveal and as_json:
        raise ConfigError("--reveal prints the secret alone: leave --json out")
    found = target.ask(lambda session: session.get("/admin/v1/secrets", SecretsInfo))
    if reveal:
        typer.echo(_revealed(target, found))
    elif as_json:
        print_json(found)
    else:
        console().print(_table(found))


@secret_commands.command("rotate")
@for_coordinator
def rotate(target: AdminTarget, *, grace: GraceOption = "8d", as_json: JsonOption = False) -> None:
    """Make a new join secret and print it. Workers that are in stay in, and need the new one when they next join.

    A worker started with --secret-file reads the file again when it renews its credentials, each 12 hours: put the
    new one there. With --grace 0 the old one ends at once. A coordinator that stands by (`coord serve --take-over`)
    reads its copy of the state folder again when it takes over: copy the folder's files there anew.
    """
    request = RotateSecretRequest(grace_s=seconds_of("--grace", grace, most_days=_MOST_DAYS))
    rotated = target.ask(lambda session: session.post("/admin/v1/secrets/join/rotate", request, RotatedSecret))
    if as_json:
        print_json(rotated)
        return
    notes().print(
        f"the new join secret; older ones admit until {minute(rotated.old_until)}"
        if request.grace_s
        else "the new join secret; no older one admits any more",
        markup=False,
    )
    notes().print("invites stay as they are: `coord invite list` shows them, `coord invite revoke` ends one")
    typer.echo(rotated.secret)


@secret_commands.command("rotate-signing-key")
@for_coordinator
def rotate_signing_key(target: AdminTarget, *, grace: GraceOption = "8d", as_json: JsonOption = False) -> None:
    """Sign session tokens and tickets with a new key. With --grace 0 all workers join anew at once.

    Generations that run go on either way; API keys and certificates are something else, and stay. Who stands by
    (`coord serve --take-over`) needs a new copy of the state folder's files before it takes over.
    """
    request = RotateSecretRequest(grace_s=seconds_of("--grace", grace, most_days=_MOST_DAYS))
    found = target.ask(lambda session: session.post("/admin/v1/secrets/signing-key/rotate", request, SecretsInfo))
    print_done(
        found, f"a new key signs; older ones that verify still: {len(found.signing_keys) - 1}", as_json=as_json
    )


def _revealed(target: AdminTarget, found: SecretsInfo) -> str:
    kept_id = read_state_file(target.state / names.COORDINATOR_ID)
    if kept_id != found.coordinator_id:
        raise ConfigError(
            f"{target.state} is no state folder of {found.coordinator_id}: say --reveal where that runs, with "
            "its folder (--state)"
        )
    if not found.is_in_state_folder:
        raise ConfigError(f"the join secret isn't in {target.state}: it is {found.join_secret_from}")
    secret = read_state_file(target.state / names.JOIN_SECRET)
    if not secret:
        raise ConfigError(f"{target.state / names.JOIN_SECRET} isn't there or is empty")
    return secret


def _table(found: SecretsInfo) -> Group:
    since = f"since {minute(found.join_secret_since)}" if found.join_secret_since else "the first one"
    parts: list[Text] = [Text(f"join secret: {since}, {printable(found.join_secret_from)}")]
    parts += [Text(f"  an older one admits {_until(each)}") for each in found.previous_join_secrets]
    parts.append(Text(f"signing keys: {len(found.signing_keys)}"))
    parts += [Text(f"  an older one verifies {_until(each)}") for each in found.signing_keys if each.until]
    if not found.joins:
        return Group(*parts, Text("No worker joined since the coordinator's start."))
    table = plain_table("worker", "host", "joined", "with")
    for join in found.joins:
        table.add_row(
            join.worker_id[:12],
            cell(join.hostname),
            minute(join.at),
            _shown_with(join),
        )
    return Group(*parts, Text("Joined, or renewed, since the coordinator's start:"), table)


def _shown_with(join: RecentJoin) -> str:
    if join.invite_id is not None:
        return f"the invite {join.invite_id}"
    return "the join secret in force" if join.is_current else "an older one"


def _until(each: SecretDates) -> str:
    return f"until {minute(each.until)}, replaced {minute(each.retired_at)}"
