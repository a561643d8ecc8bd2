"""Reports saved on SQLite by plain statements, as `sqlite_routes` records routes.

The decisions are those of `generation_rows`, and so are the rows written.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from functools import cache
from itertools import groupby
from sqlite3 import Connection

from sqlalchemy import Table

from coordinator.generation_rows import END_NAMES, Ended, QuotaClock, end_values, quota_time, taken
from coordinator.quota_records import (
    GENERATIONS,
    QUOTAS,
    RESERVATIONS,
    held_reservation,
    locked_quota,
    reservation_values,
)
from coordinator.quota_rows import Settling
from coordinator.quota_usage import USAGE_COUNTS, ledger_rows
from coordinator.sqlite_rows import (
    Columns,
    bound,
    inserting,
    rows_by,
    saved_quotas,
    sent,
    updating,
)
from coordinator.stored_rows import ReportedEnd, StoredGeneration, stored_generation
from coordinator.table_base import table_of
from coordinator.tables import ContributionRow, UsageRow, WorkerOwnerRow

_USAGE, _CONTRIBUTIONS = table_of(UsageRow), table_of(ContributionRow)
_OWNERS = table_of(WorkerOwnerRow)
_ENDED = sent(GENERATIONS, END_NAMES)
_KEPT = sent(RESERVATIONS, [column.name for column in RESERVATIONS.c if column.name not in ("id", "key_id")])
_USED = sent(_USAGE, ("key_id", "day", *USAGE_COUNTS))
_GIVEN = sent(_CONTRIBUTIONS, ("worker_id", "owner", "day", "n_token_blocks"))
_END, _KEEP = updating(GENERATIONS, _ENDED, "session_id"), updating(RESERVATIONS, _KEPT, "id")


def _adding(table: Table, columns: Columns, counts: Collection[str]) -> str:
    """Insert a row, or add its counts to the one that is there."""
    found_by = ", ".join(name for name, _ in columns if name not in counts)
    added = ", ".join(f"{name} = {table.name}.{name} + excluded.{name}" for name in counts)
    return f"{inserting(table, columns)} ON CONFLICT ({found_by}) DO UPDATE SET {added}"


_ADD_USED = _adding(_USAGE, _USED, USAGE_COUNTS)
_ADD_GIVEN = _adding(_CONTRIBUTIONS, _GIVEN, ("n_token_blocks",))


def finish_generations_plainly(
    connection: Connection, ends: Sequence[ReportedEnd], quota_clock: QuotaClock | None
) -> list[StoredGeneration | None] | None:
    """As `generation_rows.finish_generations`.

    None: nothing was written, as one of them goes on from another or by another, which takes more to read.
    """
    session_ids = {end.report.session_id for end in ends}
    rows = rows_by(connection, GENERATIONS, "session_id", session_ids)
    finished, done = taken(ends, {row.session_id: stored_generation(row) for row in rows})
    if any(generation.continues or generation.continued_by for generation, _, _ in done):
        return None
    if done:
        ended = [(*bound(_ENDED, end_values(one)), one.session_id) for one, _, _ in done]
        connection.executemany(_END, ended)
        _count(connection, done)
        _settle(connection, done, quota_time(quota_clock))
    return finished


def _count(connection: Connection, done: Sequence[Ended]) -> None:
    """Add them to the ledgers."""
    worker_ids = {hop[0] for generation, _, _ in done for hop in generation.route}
    owners = {row.worker_id: row.owner for row in rows_by(connection, _OWNERS, "worker_id", worker_ids)}
    used, contributed = ledger_rows(done, {}, {}, owners)
    connection.executemany(_ADD_USED, [bound(_USED, row) for row in used])
    connection.executemany(_ADD_GIVEN, [bound(_GIVEN, row) for row in contributed])


def _settle(connection: Connection, done: Sequence[Ended], quota_now: datetime | None) -> None:
    """Count them for their keys' quotas, and give back what was held for them and isn't used."""
    key_ids = {generation.key_id for generation, _, _ in done}
    quotas = {row.key_id: locked_quota(row) for row in rows_by(connection, QUOTAS, "key_id", key_ids)}
    held_ids = {generation.reservation_id for generation, _, _ in done if generation.key_id in quotas} - {None}
    held = {row.id: held_reservation(row) for row in rows_by(connection, RESERVATIONS, "id", held_ids)}
    settling = Settling(quotas, held)
    for generation, report, at in done:
        settling.report(generation, report, quota_now or at)
    connection.executemany(*saved_quotas([quota for quota in settling.quotas if quota.is_changed]))
    for key_id, moves in groupby(settling.moves, key=lambda move: move[0]):
        _move_up(connection, key_id, [move[1:] for move in moves])
    # After the moves: what was read here is written as it is by now, those behind each other among them.
    connection.executemany(_KEEP, [(*bound(_KEPT, reservation_values(one)), one.id) for one in settling.changed])


def _move_up(connection: Connection, key_id: str, moves: Sequence[tuple[int, float, float]]) -> None:
    """Each open reservation of the key moves by what all before it have given back."""
    minute = day = 0.0
    by_minute: list[float] = []
    by_day: list[float] = []
    for row_id, minute_given, day_given in moves:
        minute, day = minute + minute_given, day + day_given
        by_minute[:0], by_day[:0] = (row_id, minute), (row_id, day)
    first = moves[0][0]
    connection.execute(_moving_up(len(moves)), (*by_minute, *by_day, key_id, first))


@cache
def _moving_up(n_moves: int) -> str:
    """Parameters: for the minute and for the day each (id, what those up to it gave back), the last id first."""
    behind = f"CASE {'WHEN id > ? THEN ? ' * n_moves}ELSE 0.0 END"
    return (
        f"UPDATE reservations SET minute_mark = minute_mark - {behind}, day_mark = day_mark - {behind}"  # noqa: S608 - no values
        " WHERE key_id = ? AND is_open IS 1 AND id > ?"
    )
