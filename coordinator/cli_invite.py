"""`coord invite`: one line by which a worker joins: made, listed, revoked. Thin over the admin API."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.table import Table
from yarl import URL

from coordinator.admin_client import AdminTarget, all_pages
from coordinator.cli_output import cell, console, minute, notes, plain_table, print_json, short_ids
from coordinator.cli_target import JsonOption, for_coordinator
from coordinator.cli_times import seconds_of
from protocol.errors import ConfigError
from protocol.invite_rest import (
    MAX_INVITE_NAME,
    MAX_INVITE_S,
    MAX_INVITE_USES,
    MIN_INVITE_S,
    CreatedInvite,
    CreateInviteRequest,
    InviteInfo,
    InviteList,
    InviteState,
)
from protocol.invites import MAX_INVITE_URLS
from protocol.listening import is_loopback
from protocol.option_values import PlainGroup

_PATH = "/admin/v1/invites"


class _CreateUnlessNamed(PlainGroup):
    """`coord invite --uses 3` is `coord invite create --uses 3`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """What typer does, with `create` before options that no command stands before."""
        if not args or (args[0].startswith("-") and args[0] not in self.get_help_option_names(ctx)):
            args = ["create", *args]
        return super().parse_args(ctx, args)


invite_commands = typer.Typer(
    cls=_CreateUnlessNamed,
    help="One line by which a worker joins, without the join secret: `coord invite` makes one.",
)


@invite_commands.command("create")
@for_coordinator
def create_invite(
    target: AdminTarget,
    *,
    expires: Annotated[
        str, typer.Option(help="For how long new workers may join by it: 90m, 24h, 90d at most.", metavar="TIME")
    ] = "24h",
    uses: Annotated[
        int, typer.Option(min=1, max=MAX_INVITE_USES, help="So many workers may join by it; each may come again.")
    ] = 1,
    name: Annotated[str, typer.Option(help="Whom or what it is for; shown by `coord invite list`.")] = "",
    address: Annotated[
        list[str] | None,
        typer.Option(
            metavar="https://HOST:PORT",
            help="Where the invited find the coordinator, instead of where it knows itself to be. May be repeated.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make an invite and print it: `worker join --invite-file FILE` needs no more. It can't be shown again."""
    created = target.ask(
        lambda session: session.post(_PATH, _request(expires, uses, name, address or ()), CreatedInvite)
    )
    if as_json:
        print_json(created)
    else:
        _print_created(created)


def _print_created(created: CreatedInvite) -> None:
    """The invite alone on standard output; what there is to know of it beside that."""
    until, n_uses = minute(created.info.expires_at), created.info.n_uses
    notes().print(
        f"invite {created.info.invite_id}, for {n_uses} worker{'s' * (n_uses > 1)} until {until}, to "
        f"{', '.join(created.urls)}. On the other machine put it into BRIGADE_INVITE or a file: worker join "
        "--invite-file FILE. Only this once:",
        markup=False,
        soft_wrap=True,
    )
    if all(is_loopback(URL(url).host or "") for url in created.urls):
        notes().print(
            "warning: other machines can't reach these addresses. Have the coordinator listen where they can "
            "(coord serve --listen 0.0.0.0:7400), or say where they reach it (--address)",
            markup=False,
            soft_wrap=True,
            style="yellow",
        )
    typer.echo(created.invite)


@invite_commands.command("list")
@for_coordinator
def list_invites(
    target: AdminTarget,
    *,
    in_state: Annotated[InviteState | None, typer.Option(help="Only those that stand so.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List invites, newest first: how they stand, and who joined by them. Never what proves them."""
    pages = target.ask(lambda session: all_pages(session, _PATH, {"state": in_state}, InviteList))
    found = tuple(invite for page in pages for invite in page.invites)
    if as_json:
        print_json(InviteList(invites=found))
    elif not found:
        which = "" if in_state is None else f" that is {in_state}"
        notes().print(f"No invite{which}; `coord invite` makes one", markup=False)
    else:
        console().print(_table(found))


@invite_commands.command("revoke")
@for_coordinator
def revoke_invite(
    target: AdminTarget,
    invite_id: Annotated[str, typer.Argument(metavar="INVITE", help="As `coord invite list` shows it.")],
    *,
    as_json: JsonOption = False,
) -> None:
    """Have nobody join by an invite any more. Workers that did stay until their credentials end, within a day.

    `coord trust ban` puts a worker out at once.
    """
    revoked = target.ask(lambda session: session.delete(f"{_PATH}/{quote(invite_id, safe='')}", InviteInfo))
    if as_json:
        print_json(revoked)
        return
    notes().print(f"invite {revoked.invite_id} is revoked", markup=False)
    if revoked.workers:
        joined = ", ".join(map(short_ids, revoked.workers))
        notes().print(
            f"joined by it, and in until their credentials end: {joined} (`coord trust ban` puts out at once)",
            markup=False,
            soft_wrap=True,
        )


def _request(expires: str, uses: int, name: str, addresses: Sequence[str]) -> CreateInviteRequest:
    expires_in_s = seconds_of("--expires", expires, most_days=MAX_INVITE_S // 86_400)
    if expires_in_s < MIN_INVITE_S:
        raise ConfigError(f"--expires {expires!r} is under {MIN_INVITE_S} s: write such as 90m, 24h or 7d")
    if len(name) > MAX_INVITE_NAME:
        raise ConfigError(f"--name has {len(name)} characters: at most {MAX_INVITE_NAME}")
    if len(addresses) > MAX_INVITE_URLS:
        raise ConfigError(f"--address is given {len(addresses)} times: at most {MAX_INVITE_URLS}")
    return CreateInviteRequest(name=name, expires_in_s=expires_in_s, n_uses=uses, urls=tuple(addresses))


def _table(invites: Sequence[InviteInfo]) -> Table:
    table = plain_table("invite", "for", "state", "good until", "used", "made", "by key", "workers")
    for invite in invites:
        table.add_row(
            invite.invite_id,
            cell(invite.name),
            invite.state.replace("_", " "),
            minute(invite.expires_at),
            f"{len(invite.workers)} of {invite.n_uses}",
            minute(invite.created_at),
            cell(invite.created_by),
            ", ".join(map(short_ids, invite.workers)),
        )
    return table
