"""`coord audit`: who did what, on what, and when. Thin over the admin API."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated
from urllib.parse import urlencode

import msgspec
import typer
from rich.table import Table

from coordinator.admin_client import AdminTarget
from coordinator.cli_output import cell, console, note_older, notes, plain_table, print_json, printable, short_ids
from coordinator.cli_target import JsonOption, for_coordinator
from protocol.admin_rest import MAX_PAGE, AuditEntry, AuditPage

MAX_HOURS = 1_000_000
"""A century: more than a calendar can go back would be no question."""


@for_coordinator
def audit_log(
    target: AdminTarget,
    *,
    who: Annotated[str | None, typer.Option(help="Only of this one: key:ID, worker:ID, or coordinator.")] = None,
    action: Annotated[str | None, typer.Option(help="Only of this kind, such as key_created.")] = None,
    subject: Annotated[
        str | None, typer.Option(help="Only on this: a key's or worker's whole id, a model's name, cluster.")
    ] = None,
    hours: Annotated[
        float | None, typer.Option(min=0, max=MAX_HOURS, help="Only of the last so many hours.")
    ] = None,
    n_lines: Annotated[int, typer.Option("--lines", min=1, max=MAX_PAGE, help="The newest so many.")] = 50,
    as_json: JsonOption = False,
) -> None:
    """Show who did what, on what, and when, newest first: what was before and after is in the JSON too."""
    since = None if hours is None else (datetime.now(UTC) - timedelta(hours=hours)).isoformat()
    given = {"who": who, "action": action, "subject": subject, "since": since, "limit": str(n_lines)}
    query = urlencode({name: value for name, value in given.items() if value is not None})
    found = target.ask(lambda session: session.get(f"/admin/v1/audit?{query}", AuditPage))
    if as_json:
        print_json(found)
    elif found.entries:
        console().print(audit_table(found.entries))
        note_older(found.next_cursor, n_lines)
    elif not found.known_actions:
        notes().print("no line is as asked; `coord audit` without filters shows the newest", markup=False)
    if found.known_actions:
        notes().print(
            f"no line is of the action {printable(action or '')}; the log has {', '.join(found.known_actions)}",
            markup=False,
            soft_wrap=True,
        )


def audit_table(entries: Sequence[AuditEntry]) -> Table:
    """Lines of the audit log, with what changed."""
    table = plain_table("when (UTC)", "who", "what", "on", "details", "changed")
    for entry in entries:
        words = (short_ids(entry.who), entry.action, short_ids(entry.subject), short_ids(entry.details))
        table.add_row(entry.at[:19].replace("T", " "), *map(cell, words), cell(_changed(entry)))
    return table


def _changed(entry: AuditEntry) -> str:
    before, after = entry.before or {}, entry.after or {}
    return ", ".join(
        f"{name}: {_word(before.get(name))} -> {_word(after.get(name))}"
        for name in dict.fromkeys((*before, *after))
        if before.get(name) != after.get(name)
    )


def _word(value: object) -> str:
    return msgspec.json.encode(value).decode()
