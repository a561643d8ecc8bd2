"""`coord status` and `coord plan`: thin over the admin API."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote

import typer

from coordinator.admin_client import AdminTarget
from coordinator.cli_output import plan_table, print_answer, print_json, print_status
from coordinator.cli_target import JsonOption, for_coordinator
from protocol.cluster_rest import ClusterStatus
from protocol.errors import ConfigError
from protocol.plan_rest import PlanInfo


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
            "the gain. After a restart of the coordinator it goes on, unless the cluster is another one by then.",
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
    print_answer(found, plan_table(found), as_json=as_json)
