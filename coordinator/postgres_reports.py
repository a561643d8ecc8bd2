"""Reports saved on PostgreSQL in four round trips, in its own statements: `generation_rows` takes eleven.

The decisions are the same, and so are the rows written. Generations and their keys' quotas are locked along with
BEGIN; one statement reads all that is needed of them, one writes all that follows, and COMMIT is the fourth. What
is read was committed before the locks were given: a statement that waited for them itself would not see all of it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import asyncpg
from sqlalchemy import Table

from coordinator.generation_rows import END_NAMES, Ended, QuotaClock, end_values, quota_time, taken
from coordinator.postgres_rows import FIRST_FREE, arrays_of, quoted, rows_of, setting, settling
from coordinator.quota_records import (
    GENERATIONS,
    QUOTAS,
    RESERVATIONS,
    HeldReservation,
    LockedQuota,
    held_reservation,
    locked_quota,
)
from coordinator.quota_rows import Settling
from coordinator.quota_usage import USAGE_COUNTS, ledger_rows
from coordinator.stored_rows import ReportedEnd, StoredGeneration, stored_generation
from coordinator.table_base import table_of
from coordinator.tables import ContributionRow, UsageRow
from coordinator.transactions import Transactions
from protocol.ids import SessionId, is_session_id

_USAGE, _CONTRIBUTIONS = table_of(UsageRow), table_of(ContributionRow)
_ENDED_NAMES = ("session_id", *END_NAMES)
_USED_NAMES = ("key_id", "day", *USAGE_COUNTS)
_GIVEN_NAMES = ("worker_id", "owner", "day", "n_token_blocks")
_FIRST_USED = FIRST_FREE + len(_ENDED_NAMES)
_FIRST_GIVEN = _FIRST_USED + len(_USED_NAMES)
_READ_OF = tuple((table, tuple(column.name for column in table.c)) for table in (GENERATIONS, QUOTAS, RESERVATIONS))
_COLUMNS = ", ".join(f'{table.name}."{name}"' for table, names in _READ_OF for name in names)
_OWNERS = (
    "SELECT json_object_agg(worker_id, owner) FROM worker_owners"
    " WHERE worker_id IN (SELECT hop ->> 0 FROM json_array_elements(generations.route) AS hop)"
)
_READ = f"""SELECT {_COLUMNS}, ({_OWNERS}) FROM generations
LEFT JOIN quotas ON quotas.key_id = generations.key_id
LEFT JOIN reservations ON reservations.id = generations.reservation_id AND reservations.key_id = quotas.key_id
WHERE generations.session_id = ANY($1)"""  # noqa: S608 - names of ours


def _adding(table: Table, names: Sequence[str], counts: Collection[str], first: int) -> str:
    """Insert rows that are parameters from `first` on, or add their counts to those that are there."""
    found_by = [name for name in names if name not in counts]
    added = ", ".join(f"{name} = {table.name}.{name} + excluded.{name}" for name in counts)
    return (  # names of ours, and numbers of parameters
        f"INSERT INTO {table.name} ({quoted(names)}) SELECT {quoted(names)} FROM {rows_of(table, names, first)}"  # noqa: S608
        f" ORDER BY place ON CONFLICT ({quoted(found_by)}) DO UPDATE SET {added}"
    )


_WRITE = settling(
    f"ended AS (UPDATE generations SET {setting(_ENDED_NAMES)}"  # noqa: S608 - as above
    f" FROM {rows_of(GENERATIONS, _ENDED_NAMES, FIRST_FREE)} WHERE generations.session_id = new.session_id)",
    f"used AS ({_adding(_USAGE, _USED_NAMES, USAGE_COUNTS, _FIRST_USED)})",
    f"given AS ({_adding(_CONTRIBUTIONS, _GIVEN_NAMES, _GIVEN_NAMES[-1:], _FIRST_GIVEN)})",
)


async def finish_natively(
    transactions: Transactions,
    ends: Sequence[ReportedEnd],
    quota_clock: QuotaClock | None,
    left: list[LockedQuota],
) -> list[StoredGeneration | None] | None:
    """As `generation_rows.finish_generations`, in a transaction of its own.

    None: nothing was written, as one of them goes on from another or by another, which takes more to read.
    """
    session_ids = {end.report.session_id for end in ends}
    if not session_ids:
        return []
    if not all(is_session_id(session_id) for session_id in session_ids):  # they stand in a statement as they are
        return None
    work = partial(_finished, ends, quota_clock, left, session_ids)
    return await transactions.write_natively(_locks(session_ids), work)


def _locks(session_ids: Collection[SessionId]) -> str:
    """In the order in which all others lock them too."""
    names = ", ".join(f"'{session_id}'" for session_id in session_ids)
    of_these = f"FROM generations WHERE session_id IN ({names})"
    return (
        f"SELECT 1 {of_these} ORDER BY session_id FOR UPDATE; "  # noqa: S608 - `is_session_id` each
        f"SELECT 1 FROM quotas WHERE key_id IN (SELECT key_id {of_these}) ORDER BY key_id FOR UPDATE"
    )


async def _finished(
    ends: Sequence[ReportedEnd],
    quota_clock: QuotaClock | None,
    left: list[LockedQuota],
    session_ids: Collection[SessionId],
    native: asyncpg.Connection,
) -> list[StoredGeneration | None] | None:
    """Under `_locks`."""
    quota_now = quota_time(quota_clock)
    read = _Read(await native.fetch(_READ, list(session_ids)))
    finished, done = taken(ends, read.generations)
    if any(generation.continues or generation.continued_by for generation, _, _ in done):
        return None
    settling_them = Settling(read.quotas, read.reservations)
    for generation, report, at in done:
        settling_them.report(generation, report, quota_now or at)
    if done:
        await native.execute(_WRITE, *settling_them.arrays(), *_arrays(done, read.owners))
    left += settling_them.quotas
    return finished


class _Read:
    """What `_READ` found."""

    def __init__(self, rows: Sequence[asyncpg.Record]) -> None:
        self.generations: dict[SessionId, StoredGeneration] = {}
        self.quotas: dict[str, LockedQuota] = {}
        self.reservations: dict[int, HeldReservation] = {}
        self.owners: dict[str, str] = {}
        for row in rows:
            *parts, owners = _parts(row)
            generation, quota, reservation = parts
            self.generations[generation.session_id] = stored_generation(generation)
            if quota.key_id is not None and quota.key_id not in self.quotas:
                self.quotas[quota.key_id] = locked_quota(quota)
            if reservation.id is not None:
                self.reservations[reservation.id] = held_reservation(reservation)
            self.owners |= owners or {}


def _parts(row: asyncpg.Record) -> Iterator[Any]:
    """The row's parts of each table, whose columns are attributes; then what else is in it."""
    values = iter(row.values())
    for _, names in _READ_OF:
        yield SimpleNamespace(**dict(zip(names, values, strict=False)))
    yield from values


def _arrays(done: Sequence[Ended], owners: dict[str, str]) -> Iterator[list[Any]]:
    used, given = ledger_rows(done, {}, {}, owners)
    ended = [{"session_id": one.session_id} | end_values(one) for one, _, _ in done]
    yield from arrays_of(GENERATIONS, _ENDED_NAMES, ended)
    yield from arrays_of(_USAGE, _USED_NAMES, used)
    yield from arrays_of(_CONTRIBUTIONS, _GIVEN_NAMES, given)
