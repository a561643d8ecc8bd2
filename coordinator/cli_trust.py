"""`coord trust`: how far workers are trusted and why; pin, ban and pardon them. Thin over the admin API."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote

import typer

from coordinator.admin_client import AdminTarget, all_pages
from coordinator.cli_output import (
    print_answer,
    print_done,
    printable,
    short_ids,
    trust_history,
    trust_table,
)
from coordinator.cli_target import MINUS_IS_A_NUMBER, JsonOption, for_coordinator
from protocol.errors import ConfigError
from protocol.trust_rest import MAX_TRUST_REASON, TrustHistory, TrustInfo, TrustList, TrustRequest

trust_commands = typer.Typer(no_args_is_help=True, help="How far workers are trusted.")

WorkerArgument = Annotated[
    str, typer.Argument(help="The worker's id, or its beginning as `coord status` shows it.", metavar="WORKER")
]
ReasonOption = Annotated[str, typer.Option(help="Why, for the history and the audit log.")]


@trust_commands.command("list")
@for_coordinator
def list_trust(target: AdminTarget, *, as_json: JsonOption = False) -> None:
    """List all workers, the least trusted first: score in [0, 1], level, and what speaks against them."""
    pages = target.ask(lambda session: all_pages(session, "/admin/v1/trust", {}, TrustList))
    workers = tuple(worker for page in pages for worker in page.workers)
    print_answer(TrustList(workers=workers), trust_table(workers), as_json=as_json)


@trust_commands.command("show")
@for_coordinator
def show_trust(target: AdminTarget, worker: WorkerArgument, *, as_json: JsonOption = False) -> None:
    """Show one worker's score, who says what of it, and how it came about."""
    found = target.ask(lambda session: session.get(_path(worker), TrustHistory))
    print_answer(found, trust_history(found), as_json=as_json)


@trust_commands.command("pin", context_settings=MINUS_IS_A_NUMBER)
@for_coordinator
def pin(
    target: AdminTarget,
    worker: WorkerArgument,
    score: Annotated[float, typer.Argument(help="From 0 (never routed) to 1.")],
    *,
    reason: ReasonOption = "",
    as_json: JsonOption = False,
) -> None:
    """Give a worker this score, whatever the evidence, until `coord trust unpin`."""
    if not 0.0 <= score <= 1.0:
        raise ConfigError(f"the score is {score:g}; it must be between 0 and 1")
    _decide(target, worker, TrustRequest(action="pin", score=score, reason=_checked(reason)), as_json=as_json)


@trust_commands.command("unpin")
@for_coordinator
def unpin(
    target: AdminTarget, worker: WorkerArgument, *, reason: ReasonOption = "", as_json: JsonOption = False
) -> None:
    """Have the evidence on a worker count again."""
    _decide(target, worker, TrustRequest(action="unpin", reason=_checked(reason)), as_json=as_json)


@trust_commands.command("ban")
@for_coordinator
def ban(
    target: AdminTarget, worker: WorkerArgument, *, reason: ReasonOption = "", as_json: JsonOption = False
) -> None:
    """Put a worker out: its connection is closed, others get its blocks, and it can't join again until pardoned."""
    _decide(target, worker, TrustRequest(action="ban", reason=_checked(reason)), as_json=as_json)


@trust_commands.command("pardon")
@for_coordinator
def pardon(
    target: AdminTarget, worker: WorkerArgument, *, reason: ReasonOption = "", as_json: JsonOption = False
) -> None:
    """Take back ban, quarantine and pin, and forget all that speaks against a worker."""
    _decide(target, worker, TrustRequest(action="pardon", reason=_checked(reason)), as_json=as_json)


def _decide(target: AdminTarget, worker: str, request: TrustRequest, *, as_json: bool) -> None:
    info = target.ask(lambda session: session.post(_path(worker), request, TrustInfo))
    reason = f": {short_ids(printable(info.reason))}" if info.reason else ""
    pinned = "" if info.pinned is None else ", pinned"
    words = f"worker {info.worker_id} has trust {info.score:.2f} ({info.level}{pinned}){reason}"
    print_done(info, words, as_json=as_json)


def _path(worker: str) -> str:
    return f"/admin/v1/workers/{quote(worker, safe='')}/trust"


def _checked(reason: str) -> str:
    if len(reason) > MAX_TRUST_REASON:
        raise ConfigError(f"--reason has {len(reason)} characters; at most {MAX_TRUST_REASON}")
    return reason
