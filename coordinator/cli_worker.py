"""`coord worker`: the workers of the cluster. Thin over the admin API."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote

import typer

from coordinator.admin_client import AdminTarget, all_pages, changed_as_read
from coordinator.cli_output import (
    console,
    notes,
    print_answer,
    print_done,
    print_json,
    printable,
    short_ids,
    worker_table,
)
from coordinator.cli_owners import owner_label, whose
from coordinator.cli_target import JsonOption, for_coordinator
from protocol.admin_rest import WorkerList
from protocol.cluster_rest import ClusterStatus, TrustLevel, WorkerInfo
from protocol.compatibility import knows
from protocol.control_messages import WorkerState
from protocol.errors import ConflictError, DeadlineExceededError, ProtocolVersionError
from protocol.quota_rest import OwnerRequest, WorkerOwner

if TYPE_CHECKING:
    from protocol.pinned_http import CoordinatorSession

LEAVING_S = 180.0
"""How long `remove --force` waits for a worker to have left."""

worker_commands = typer.Typer(no_args_is_help=True, help="The workers of the cluster.")
WorkerArgument = Annotated[
    str, typer.Argument(metavar="WORKER", help="The worker's id, or its beginning as `coord status` shows it.")
]


@worker_commands.command("owner")
@for_coordinator
def set_owner(
    target: AdminTarget,
    worker_id: WorkerArgument,
    owner: Annotated[str, typer.Argument(help="A label: a person or a group; none: nobody's in particular.")],
    *,
    as_json: JsonOption = False,
) -> None:
    """Say whose machine a worker is: from now on what it gives is counted for that owner."""
    request = OwnerRequest(owner=owner_label(owner))
    path = _path(worker_id)
    worker = target.ask(
        lambda session: changed_as_read(
            session, path, WorkerInfo, request, WorkerOwner, change_path=f"{path}/owner"
        )
    )
    print_done(worker, f"worker {worker.worker_id} is {whose(worker.owner)}", as_json=as_json)


@worker_commands.command("list")
@for_coordinator
def list_workers(
    target: AdminTarget,
    *,
    in_state: Annotated[WorkerState | None, typer.Option(help="Only workers in this state.")] = None,
    model: Annotated[str | None, typer.Option(help="Only those that hold blocks of this model.")] = None,
    trust: Annotated[TrustLevel | None, typer.Option(help="Only those that are trusted so far.")] = None,
    owner: Annotated[str | None, typer.Option(help="Only this owner's; none: nobody's in particular.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List the workers: state, reason, blocks, device, sessions."""
    wanted_owner = None if owner is None else owner_label(owner)
    given = {"state": in_state, "model": model, "trust_level": trust, "owner": wanted_owner}
    workers = target.ask(lambda session: _workers(session, given))
    if not workers and not as_json and any(value is not None for value in given.values()):
        notes().print("No worker is as asked; `coord worker list` without filters shows all", markup=False)
        return
    print_answer(WorkerList(workers=workers), worker_table(workers), as_json=as_json)


@worker_commands.command("show")
@for_coordinator
def show_worker(target: AdminTarget, worker_id: WorkerArgument, *, as_json: JsonOption = False) -> None:
    """Show a worker: state, reason, blocks, device, trust, owner, and how far away others are."""
    worker = target.ask(lambda session: session.get(_path(worker_id), WorkerInfo))
    if as_json:
        print_json(worker)
        return
    console().print(worker_table((worker,)))
    facts = {
        "id": worker.worker_id,
        "address": worker.url,
        "version": worker.version,
        "owner": worker.owner or "nobody in particular",
        "trust": f"{worker.trust:.2f}, {worker.trust_level}",
        **{f"to {to}": f"{1000 * seconds:.1f} ms and back" for to, seconds in worker.round_trips_s.items()},
    }
    for name, fact in facts.items():
        console().print(f"  {name}: {printable(fact)}", markup=False, soft_wrap=True)


@worker_commands.command("remove")
@for_coordinator
def remove_worker(
    target: AdminTarget,
    worker_id: WorkerArgument,
    *,
    is_forced: Annotated[
        bool,
        typer.Option("--force", help="If it is still there, drain it, and wait until it has left."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Forget a worker that is gone. Its trust is kept, and if it joins again it is known by it."""
    worker = target.ask(lambda session: _removed(session, worker_id, is_forced=is_forced))
    print_done(worker, f"worker {worker.worker_id} is forgotten", as_json=as_json)


@worker_commands.command("drain")
@for_coordinator
def drain_worker(
    target: AdminTarget,
    worker_id: WorkerArgument,
    *,
    as_json: JsonOption = False,
) -> None:
    """Have a worker leave: once others hold its blocks it takes nothing new, finishes what runs, and goes.

    It waits 60 s at most for others to load them, and not at all if nobody has room: `coord status` says which.
    """
    worker = target.ask(lambda session: session.post(f"{_path(worker_id)}/drain", None, WorkerInfo))
    print_done(
        worker,
        f"worker {worker.worker_id} is {worker.state}: {short_ids(printable(worker.reason))}",
        as_json=as_json,
    )


@worker_commands.command("undrain")
@for_coordinator
def undrain_worker(
    target: AdminTarget,
    worker_id: WorkerArgument,
    *,
    as_json: JsonOption = False,
) -> None:
    """Have a worker stay that was asked to leave and still serves, until others hold its blocks."""
    worker = target.ask(lambda session: session.post(f"{_path(worker_id)}/undrain", None, WorkerInfo))
    print_done(worker, f"worker {worker.worker_id} stays, and is {worker.state}", as_json=as_json)


async def _workers(session: CoordinatorSession, filters: Mapping[str, str | None]) -> tuple[WorkerInfo, ...]:
    version = await session.greet()
    if knows(WorkerInfo, "owner", version):
        pages = await all_pages(session, "/admin/v1/workers", filters, WorkerList)
        return tuple(worker for page in pages for worker in page.workers)
    if any(value is not None for value in filters.values()):
        raise ProtocolVersionError(
            f"the coordinator speaks protocol {version}, which lists all workers only: update it, or leave the "
            "filters out"
        )
    return (await session.get("/admin/v1/status", ClusterStatus)).workers


async def _removed(session: CoordinatorSession, worker_id: str, *, is_forced: bool) -> WorkerInfo:
    path = _path(worker_id) + ("?force=true" if is_forced else "")
    try:
        async with asyncio.timeout(LEAVING_S):
            while True:
                try:
                    return await session.delete(path, WorkerInfo)
                except ConflictError as error:
                    if error.retry_after_s is None:
                        raise
                    await asyncio.sleep(error.retry_after_s)
    except TimeoutError as exc:
        raise DeadlineExceededError(
            f"worker {worker_id} hasn't left within {LEAVING_S:.0f} s: `coord worker show` says what it waits for; "
            "ask again then"
        ) from exc


def _path(worker_id: str) -> str:
    return f"/admin/v1/workers/{quote(worker_id, safe='')}"
