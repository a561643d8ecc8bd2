"""`coord trust audit` and `coord trust audits`: have a worker audited now, and what audits found."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote

import typer
from rich.table import Table

from coordinator.admin_client import AdminTarget, all_pages
from coordinator.cli_output import cell, console, notes, plain_table, print_json, printable, short_ids
from coordinator.cli_target import JsonOption, for_coordinator
from coordinator.cli_trust import WorkerArgument
from protocol.audit_rest import AuditInfo, AuditList

AUDIT_TIMEOUT_S = 1200.0
"""An answer may take a minute, and no fresh probe begins later than three: a quarter of an hour at most."""
NOTHING_YET = "No audits yet: a worker is compared with another one that holds the same blocks (`coord status`)."
NONE_OF_IT = "No audit of such a worker yet; `coord trust list` shows who there is, `coord trust audit` audits one."
NONE_BY_ITSELF = "The coordinator makes none by itself (`coord serve --audit-share 0`)."


@for_coordinator
def audit(target: AdminTarget, worker: WorkerArgument, *, as_json: JsonOption = False) -> None:
    """Audit a worker now: have it and another one compute the same, and compare."""
    path = f"/admin/v1/workers/{quote(worker, safe='')}/audits"
    found = target.ask(lambda session: session.post(path, None, AuditInfo, timeout_s=AUDIT_TIMEOUT_S))
    if as_json:
        print_json(found)
        return
    words = f"worker {found.worker_id} {outcome_words(found)}: {short_ids(printable(found.reason))}"
    notes().print(words, markup=False, soft_wrap=True)


@for_coordinator
def audits(
    target: AdminTarget,
    *,
    worker: Annotated[str | None, typer.Option(help="Only those of this worker: its id, or its beginning.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List what audits found, newest first."""
    pages = target.ask(lambda session: all_pages(session, "/admin/v1/audits", {"worker": worker}, AuditList))
    share, shown = pages[0].share, [one for page in pages for one in page.audits]
    if as_json:
        print_json(AuditList(share=share, audits=tuple(shown)))
        return
    if share == 0.0:
        notes().print(NONE_BY_ITSELF, markup=False, soft_wrap=True)
    if not shown:
        notes().print(NOTHING_YET if worker is None else NONE_OF_IT, markup=False, soft_wrap=True)
        return
    console().print(_table(shown))


def _table(shown: list[AuditInfo]) -> Table:
    table = plain_table("when", "worker", "found", "compared with", "decided by", "why")
    for one in shown:
        table.add_row(
            one.at[:16].replace("T", " "),
            cell(short_ids(one.worker_id)),
            cell(one.outcome),
            cell(short_ids(one.partner)),
            cell(short_ids(one.referee)),
            cell(short_ids(one.reason)),
        )
    return table


def outcome_words(found: AuditInfo) -> str:
    """What was found, for people, as what follows the worker's id."""
    match found.outcome:
        case "passed":
            return "passed"
        case "failed":
            return "failed, and is quarantined unless an operator pinned it"
        case "suspected":
            others = {"suspected": ", and so is the other one", "passed": "; the other one passed"}
            return f"is suspected{others.get(found.partner_outcome, '')}"
        case "unanswered":
            return "gave no answer, which counts against it"
        case "undecided":
            return "couldn't be audited"
