"""`worker doctor`: look at this machine and the way to the coordinator, and say what to mend."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import msgspec
import typer

from protocol.errors import ConfigError
from protocol.invites import Invite
from worker import cli_options as options
from worker.config import checked_url, default_state, given_secret, listed_urls, listen_address

if TYPE_CHECKING:  # it imports torch
    from protocol.checks import Check
    from worker.device import PrecisionChoice

_Device = Literal["auto", "cpu", "cuda", "mps"]


def doctor(
    urls: options.Urls = None,
    *,
    secret_file: Annotated[
        Path | None,
        typer.Option(help="File with the join secret. Without it: BRIGADE_SECRET.", show_default=False),
    ] = None,
    invite_file: Annotated[
        Path | None,
        typer.Option(
            help="File with the invite, in place of address and secret. Else BRIGADE_INVITE.", show_default=False
        ),
    ] = None,
    state: options.State = None,
    listen: options.Listen = None,
    advertise: options.Advertise = None,
    device: Annotated[_Device, typer.Option(help="As for `worker join`.")] = "auto",
    precision: options.Precision = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Check this machine, the way to the coordinator and the way back, and say what to mend. Changes nothing.

    Exit code 0: nothing failed (there may be warnings); 1: a check failed.
    """
    # what a worker that joins needs none of
    from protocol.checks import exit_code_of
    from worker.doctor import Patient, examine
    from worker.doctor_network import Doorway

    host, port = listen_address(listen) if listen is not None else (None, 0)
    if advertise is not None:
        checked_url(advertise, "--advertise")
    patient = Patient(
        coordinator_urls=listed_urls(urls or ()) or _invited_to(secret_file, invite_file),
        secret=lambda: given_secret(secret_file, invite_file),
        state=state or default_state(),
        doorway=Doorway(listen_host=host, listen_port=port, advertise_url=advertise),
        device=device,
        precision=cast("PrecisionChoice", precision),
        clock=lambda: datetime.now(UTC).timestamp(),
    )
    checks = asyncio.run(examine(patient))
    _print(checks, as_json=as_json)
    raise typer.Exit(exit_code_of(checks))


def _print(checks: Sequence[Check], *, as_json: bool) -> None:
    from protocol.answer_console import answer_console
    from protocol.checks import CheckList, report_table

    if as_json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(CheckList(checks=tuple(checks)))).decode() + "\n")
    else:
        answer_console().print(report_table(checks))


def _invited_to(secret_file: Path | None, invite_file: Path | None) -> tuple[str, ...]:
    """The addresses in the invite, if that is what was given; what is wrong with it is one of the findings."""
    try:
        given = given_secret(secret_file, invite_file)
    except ConfigError:
        return ()
    return given.urls if isinstance(given, Invite) else ()
