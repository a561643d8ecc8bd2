"""`worker doctor`: look at this machine and the way to the coordinator, and say what to mend."""

from __future__ import annotations

import asyncio
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import typer
from rich.console import Console

from protocol.checks import exit_code_of, report_table
from worker.config import checked_url, default_state, listed_urls, listen_address, settled_secret
from worker.doctor import Patient, examine
from worker.doctor_network import Doorway

_Device = Literal["auto", "cpu", "cuda", "mps"]


def doctor(
    urls: Annotated[list[str], typer.Argument(metavar="URL...", help="The coordinator, https://HOST:PORT.")],
    *,
    secret_file: Annotated[
        Path | None,
        typer.Option(help="File with the join secret. Without it: BRIGADE_SECRET.", show_default=False),
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(
            help="The worker's folder. Else BRIGADE_WORKER_STATE, else the user's own.", show_default=False
        ),
    ] = None,
    listen: Annotated[
        str | None, typer.Option(help="As for `worker join`: HOST or HOST:PORT.", show_default=False)
    ] = None,
    advertise: Annotated[
        str | None, typer.Option(help="As for `worker join`: https://HOST:PORT.", show_default=False)
    ] = None,
    device: Annotated[_Device, typer.Option(help="As for `worker join`.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Check this machine, the way to the coordinator and the way back, and say what to mend. Changes nothing.

    Exit code 0: nothing failed (there may be warnings); 1: a check failed.
    """
    host, port = listen_address(listen) if listen is not None else (None, 0)
    if advertise is not None:
        checked_url(advertise, "--advertise")
    patient = Patient(
        coordinator_urls=listed_urls(urls),
        secret=lambda: settled_secret(None, secret_file),
        state=state or default_state(),
        doorway=Doorway(listen_host=host, listen_port=port, advertise_url=advertise),
        device=device,
        clock=lambda: datetime.now(UTC).timestamp(),
    )
    checks = asyncio.run(examine(patient))
    if as_json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(checks)).decode() + "\n")
    else:
        Console(highlight=False).print(report_table(checks))
    raise typer.Exit(exit_code_of(checks))
