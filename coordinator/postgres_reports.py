"""Reports saved on PostgreSQL in two round trips, in its own statements: `generation_rows` takes eleven.

The decisions are the same, and so are the rows written. One statement reads all that is needed of generations and
their reservations, while routes go on. The other writes all that follows, if nothing of that was written since and
the keys' quotas are as they are known: only it keeps routes waiting.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import asyncpg
from sqlalchemy import Table

from coordinator.generation_rows import END_NAMES, Ended, QuotaClock, end_values, quota_time, taken
from coordinator.postgres_known import N_KNOWN, as_known, known_arrays
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
from coordinator.remembered_quotas import Known, KnownQuota
from coordinator.stored_rows import ReportedEnd, StoredGeneration, stored_generation
from coordinator.table_base import table_of
from coordinator.tables import ContributionRow, UsageRow
from coordinator.transactions import Transactions
from protocol.ids import KeyId, SessionId, is_session_id

_USAGE, _CONTRIBUTIONS = table_of(UsageRow), table_of(ContributionRow)
_ENDED_NAMES = ("session_id", *END_NAMES)
_USED_NAMES = ("key_id", "day", *USAGE_COUNTS)
_GIVEN_NAMES = ("worker_id", "owner", "day", "n_token_blocks")
_FIRST_USED = FIRST_FREE + len(_ENDED_NAMES)
_FIRST_GIVEN = _FIRST_USED + len(_USED_NAMES)
_FIRST_KNOWN = _FIRST_GIVEN + len(_GIVEN_NAMES)
_FIRST_READ = _FIRST_KNOWN + N_KNOWN
_READ_OF = tuple((table, tuple(column.name for column in table.c)) for table in (GENERATIONS, QUOTAS, RESERVATIONS))
_COLUMNS = ", ".join(f'{table.name}."{name}"' for table, names in _READ_OF for name in names)
_OWNERS = (
    "SELECT json_object_agg(worker_id, owner) FROM worker_owners"
    " WHERE worker_id IN (SELECT hop ->> 0 FROM json_array_elements(generations.route) AS hop)"
)
# `xmin` is the transaction that wrote this version of the row: another one, and the row was written meanwhile.
_READ = f"""SELECT {_COLUMNS}, quotas.limits::text, generations.xmin::text, reservations.xmin::text, ({_OWNERS})
FROM generations
LEFT JOIN quotas ON quotas.key_id = generations.key_id
LEFT JOIN reservations ON reservations.id = generations.reservation_id AND reservations.key_id = quotas.key_id
WHERE generations.session_id = ANY($1)"""  # noqa: S608 - names of ours


_MAY = "(SELECT be FROM may)"


def _adding(table: Table, names: Sequence[str], counts: Collection[str], first: int) -> str:
    """Insert rows that are parameters from `first` on, if they may be, or add their counts to those there are."""
    found_by = [name for name in names if name not in counts]
    added = ", ".join(f"{name} = {table.name}.{name} + excluded.{name}" for name in counts)
    return (  # names of ours, and numbers of parameters
        f"INSERT INTO {table.name} ({quoted(names)}) SELECT {quoted(names)} FROM {rows_of(table, names, first)}"  # noqa: S608
        f" WHERE {_MAY} ORDER BY place ON CONFLICT ({quoted(found_by)}) DO UPDATE SET {added}"
    )


_PARTS, _AS_KNOWN = as_known(_FIRST_KNOWN)


def _as_read(table: Table, name: str, first: int) -> str:
    """The table's rows of these names that nobody has written since, locked in order."""
    kind = "BIGINT" if name == "id" else "VARCHAR"
    return (  # names of ours, and numbers of parameters
        f"SELECT FROM {table.name}"
        f" JOIN unnest(${first}::{kind}[], ${first + 1}::TEXT[]) AS read (name, version)"
        f" ON {table.name}.{name} = read.name AND {table.name}.xmin::text = read.version"
        f" ORDER BY {table.name}.{name} FOR UPDATE OF {table.name}"
    )


# What is locked is, in the order in which all others lock it too: generations, quotas, reservations.
_WRITE_IF_AS_KNOWN = f"""WITH {_PARTS},
running AS MATERIALIZED ({_as_read(GENERATIONS, "session_id", _FIRST_READ)}),
reserved AS MATERIALIZED ({_as_read(RESERVATIONS, "id", _FIRST_READ + 2)}),
may AS MATERIALIZED (
    SELECT (SELECT count(*) FROM running) = cardinality(${_FIRST_READ})
        AND {_AS_KNOWN}
        AND (SELECT count(*) FROM reserved) = cardinality(${_FIRST_READ + 2}) AS be
), {settling(_MAY)},
ended AS (
    UPDATE generations SET {setting(_ENDED_NAMES)}
    FROM {rows_of(GENERATIONS, _ENDED_NAMES, FIRST_FREE)} WHERE generations.session_id = new.session_id AND {_MAY}
),
used AS ({_adding(_USAGE, _USED_NAMES, USAGE_COUNTS, _FIRST_USED)}),
given AS ({_adding(_CONTRIBUTIONS, _GIVEN_NAMES, _GIVEN_NAMES[-1:], _FIRST_GIVEN)})
SELECT be FROM may"""  # noqa: S608 - as above


async def read_reports(transactions: Transactions, ends: Sequence[ReportedEnd]) -> ReadReports | None:
    """What is there of the generations that are reported.

    None: it takes more to read, as one of them goes on from another or by another.

    Raises:
        StorageError: the database can't be used.
    """
    # What isn't the id of a session is none that is there.
    session_ids = list({end.report.session_id for end in ends if is_session_id(end.report.session_id)})
    rows = await transactions.read_at_once(partial(_fetched, session_ids)) if session_ids else []
    read = ReadReports(ends, rows)
    return None if any(one.continues or one.continued_by for one, _, _ in read.done) else read


async def _fetched(session_ids: list[SessionId], native: asyncpg.Connection) -> list[asyncpg.Record]:
    rows: list[asyncpg.Record] = await native.fetch(_READ, session_ids)
    return rows


class ReadReports:
    """Reports, and what `_READ` found."""

    def __init__(self, ends: Sequence[ReportedEnd], rows: Sequence[asyncpg.Record]) -> None:
        generations: dict[SessionId, StoredGeneration] = {}
        self.known: dict[KeyId, KnownQuota | None] = {}
        """The keys, and their quotas as they were."""
        self.reservations: dict[int, HeldReservation] = {}
        self.versions: tuple[dict[str, str], dict[int, str]] = ({}, {})
        """Of generations and of reservations."""
        self.owners: dict[str, str] = {}
        for row in rows:
            generation, quota, reservation, limits_text, version, reservation_version, owners = _parts(row)
            generations[generation.session_id] = stored_generation(generation)
            self.versions[0][generation.session_id] = version
            if quota.key_id is None:
                self.known[generation.key_id] = None
            elif quota.key_id not in self.known:
                its = locked_quota(quota)
                self.known[quota.key_id] = KnownQuota(limits_text=limits_text, quota=its, n_running=0)
            if reservation.id is not None:
                self.reservations[reservation.id] = held_reservation(reservation)
                self.versions[1][reservation.id] = reservation_version
            self.owners |= owners or {}
        self.finished, self.done = taken(ends, generations)


class SettledReports:
    """What follows from reports where the keys' quotas are so."""

    def __init__(self, read: ReadReports, known: Known, quota_clock: QuotaClock | None) -> None:
        self._read, self._known = read, known
        self._n_over: Counter[str] = Counter()
        """Reservations by key that are open no more."""
        quotas: dict[str, LockedQuota] = {key_id: one.quota for key_id, one in known.items() if one is not None}
        self._settling = Settling(quotas, read.reservations)
        quota_now = quota_time(quota_clock)
        were_open = [one for one in read.reservations.values() if one.held.is_open]
        for generation, report, at in read.done:
            self._settling.report(generation, report, quota_now or at)
        self._n_over.update(one.key_id for one in were_open if not one.held.is_open)

    def left(self, key_id: KeyId) -> KnownQuota | None:
        """The key's quota once it is written."""
        one = self._known[key_id]
        return None if one is None else one.left(one.n_running - self._n_over[key_id])

    async def written_if_as_known(self, epoch: int, native: asyncpg.Connection) -> bool:
        """Write it if all is as it was read and is known, and the lease is of this epoch; whether it was."""
        return bool(await native.fetchval(_WRITE_IF_AS_KNOWN, *self._parameters(epoch)))

    def _parameters(self, epoch: int) -> Iterator[Any]:
        yield from self._settling.arrays()
        yield from _arrays(self._read.done, self._read.owners)
        yield from known_arrays(self._known, epoch)
        for versions in self._read.versions:
            yield from (list(versions), list(versions.values()))


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
