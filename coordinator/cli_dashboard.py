"""`coord dashboard`: where the dashboard is, and how a browser comes to believe that it is the right one."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.text import Text

from coordinator.admin_client import AdminTarget
from coordinator.cli_output import console, notes, print_json
from coordinator.cli_target import JsonOption, for_coordinator
from protocol.dashboard_rest import HistoryAnswer
from protocol.disk import write_atomically
from protocol.errors import NotFoundError

if TYPE_CHECKING:
    from protocol.pinned_http import CoordinatorSession


class DashboardPlace(msgspec.Struct, frozen=True, kw_only=True):
    """Where the dashboard is, and who vouches for it."""

    url: str
    ca_fingerprint: str
    """SHA-256 of the cluster's CA certificate, as browsers show it."""
    ca_file: str | None
    """Where the CA's certificate was written; None: nowhere."""


@for_coordinator
def dashboard(
    target: AdminTarget,
    *,
    save_ca: Annotated[
        Path | None, typer.Option("--save-ca", help="Write the cluster's CA certificate here, for the browser.")
    ] = None,
    is_to_open: Annotated[bool, typer.Option("--open", help="Open it in this machine's browser.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Say where the dashboard is and by which CA a browser knows it. One signs in with an admin key."""
    ca_pem = target.ask(_ca_of_dashboard)
    if save_ca is not None:
        write_atomically(save_ca, ca_pem.encode())
    hexadecimal = target.key.ca_fingerprint.upper()
    place = DashboardPlace(
        url=f"{target.url.rstrip('/')}/dashboard/",
        ca_fingerprint=":".join(hexadecimal[i : i + 2] for i in range(0, len(hexadecimal), 2)),
        ca_file=str(save_ca.absolute()) if save_ca is not None else None,
    )
    if as_json:
        print_json(place)
    else:
        console().print(Text(_words(place)), soft_wrap=True)
    if is_to_open and not webbrowser.open(place.url):
        notes().print(f"no browser was found here: open {place.url} yourself", markup=False)


async def _ca_of_dashboard(session: CoordinatorSession) -> str:
    try:
        await session.get("/dashboard/history", HistoryAnswer)
    except NotFoundError as exc:
        raise NotFoundError(
            "this coordinator runs without its dashboard (--no-dashboard, or an old version)"
        ) from exc
    return session.ca_pem


def _words(place: DashboardPlace) -> str:
    where = place.ca_file or "which `coord dashboard --save-ca FILE` writes"
    return f"""\
Dashboard  {place.url}
Sign in with an admin key (`coord key create --kind admin NAME` makes one for each operator).

The coordinator's certificate is signed by the cluster's own CA, so a browser warns until it knows that CA:
  1. take its certificate ({where}) and compare its SHA-256 fingerprint
       {place.ca_fingerprint}
  2. import it as an authority for websites: Firefox: Settings, Certificates, Authorities; Chrome and Edge: Privacy
     and security, Security, Manage certificates; macOS: Keychain Access; others: see docs/dashboard.md
"""
