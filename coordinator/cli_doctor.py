"""`coord doctor`: look at the coordinator, this machine and the workers, and say what to mend."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated

import typer

from coordinator.admin_client import AdminTarget
from coordinator.cli_output import console, print_json
from coordinator.cli_target import JsonOption, KeyFileOption, StateOption, UrlOption
from protocol.checks import CheckList, exit_code_of, report_table


def doctor(
    *,
    as_json: JsonOption = False,
    url: UrlOption = None,
    admin_key_file: KeyFileOption = None,
    state: StateOption = None,
    listen: Annotated[str | None, typer.Option(help="As for `coord serve`.")] = None,
    database_url: Annotated[str | None, typer.Option(help="As for `coord serve`.")] = None,
) -> None:
    """Check state folder, database, certificates, port, every worker and every model. Changes nothing.

    Run it on the coordinator's machine. Exit code 0: nothing failed (there may be warnings); 1: a check failed.
    """
    # the database: not for --help
    from coordinator.config import CoordinatorConfig
    from coordinator.doctor import Patient, examine

    def settled(environ: Mapping[str, str]) -> CoordinatorConfig:
        return CoordinatorConfig.from_env(environ, state=state, listen=listen, database_url=database_url)

    # a join secret that can't be used is a finding, not the end: all the rest can be looked at without it
    config = settled({name: value for name, value in os.environ.items() if name != "BRIGADE_SECRET"})
    patient = Patient(
        settings=lambda: settled(os.environ),
        state=config.state,
        database_url=config.database_url,
        listen_host=config.listen_host,
        listen_port=config.listen_port,
        target=lambda: AdminTarget.found(url=url, key_file=admin_key_file, state=state),
        now=lambda: datetime.now(UTC),
    )
    checks = asyncio.run(examine(patient))
    if as_json:
        print_json(CheckList(checks=tuple(checks)))
    else:
        console().print(report_table(checks))
    raise typer.Exit(exit_code_of(checks))
