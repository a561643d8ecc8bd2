"""Routes recorded on PostgreSQL in one round trip or four, in its own statements: `generation_rows` takes eight.

The decisions are the same, and so are the values written. What differs is how they travel. Where the keys' rows are
as this coordinator left them, and it still holds the lease, one statement sees that and writes: nobody else writes
reservations then. Else the rows are locked along with BEGIN, read by one statement, and all that follows is written
by one. Each of these sees what was committed while the lock was waited for: one that locked and counted at once
would count what ran before. Refusals are always decided so: more may seem to run than does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import asyncpg

from coordinator.generation_rows import QuotaClock, RatesLeft, begin_generations, decisions, finish_generations
from coordinator.postgres_reports import finish_natively
from coordinator.postgres_rows import QUOTA_NAMES, Row, arrays_of, quota_arrays, quoted, rows_of, saving_quotas
from coordinator.quota_records import (
    BEGUN_NAMES,
    GENERATIONS,
    HELD_NAMES,
    QUOTAS,
    RESERVATIONS,
    LockedQuota,
    locked_quota,
    quota_values,
    reservation_values,
)
from coordinator.quota_rows import Reserving
from coordinator.remembered_quotas import Known, KnownQuota, RememberedQuotas
from coordinator.stored_rows import NewGeneration, ReportedEnd, StoredGeneration
from coordinator.transactions import LEASE_ID, Transactions
from protocol.errors import BrigadeError
from protocol.ids import KeyId

_READ = (
    "SELECT quotas.*, limits::text AS limits_text, (SELECT count(*) FROM reservations"
    " WHERE reservations.key_id = quotas.key_id AND is_open) AS n_running FROM quotas WHERE key_id = ANY($1)"
)
_BEFORE_NAMES = tuple(column.name for column in QUOTAS.c)
_FIRST_HELD = 1 + len(QUOTA_NAMES)
_FIRST_BEGUN = _FIRST_HELD + len(HELD_NAMES)
_FIRST_BEFORE = _FIRST_BEGUN + len(BEGUN_NAMES)
_FREE = _FIRST_BEFORE + len(_BEFORE_NAMES)
_EPOCH = _FREE + 1


def _writing(condition: str) -> str:
    # Ids in the order of the reservations: that is their order in the queue.
    return f"""{saving_quotas(condition)}, held AS (
    INSERT INTO reservations ({quoted(HELD_NAMES)})
    SELECT {quoted(HELD_NAMES)} FROM {rows_of(RESERVATIONS, HELD_NAMES, _FIRST_HELD)}
    WHERE {condition} ORDER BY place RETURNING id, session_id
), begun AS (
    INSERT INTO generations ({quoted(BEGUN_NAMES)}, reservation_id)
    SELECT {", ".join(f'new."{name}"' for name in BEGUN_NAMES)}, held.id
    FROM {rows_of(GENERATIONS, BEGUN_NAMES, _FIRST_BEGUN)}
    LEFT JOIN held ON held.session_id = new.session_id WHERE {condition}
)"""  # noqa: S608 - names of ours, and numbers of parameters


def _is_same(name: str) -> str:
    text = "::text" if name == "limits" else ""  # JSON knows no equality
    return f"quotas.{name}{text} = before.{name}{text}"


_WRITE = f"WITH {_writing('true')} SELECT"
# What was waited for is compared as it is after the wait.
_WRITE_IF_AS_BEFORE = f"""WITH lease AS MATERIALIZED (
    SELECT FROM coordinator_lease WHERE id = {LEASE_ID} AND epoch = ${_EPOCH} FOR SHARE
), as_before AS MATERIALIZED (
    SELECT FROM quotas JOIN {rows_of(QUOTAS, _BEFORE_NAMES, _FIRST_BEFORE, "before")}
    ON {" AND ".join(_is_same(name) for name in _BEFORE_NAMES)} ORDER BY quotas.key_id FOR UPDATE OF quotas
), may AS MATERIALIZED (
    SELECT EXISTS (SELECT FROM lease)
        AND (SELECT count(*) FROM as_before) = cardinality(${_FIRST_BEFORE})
        AND NOT EXISTS (SELECT FROM quotas WHERE key_id = ANY(${_FREE}::VARCHAR[])) AS be
), {_writing("(SELECT be FROM may)")} SELECT be FROM may"""  # noqa: S608 - as above


def key_locks(key_ids: Collection[KeyId]) -> str:
    """The statement that locks these keys' rows, in order, so that two who lock several never wait for each other.

    It goes along with BEGIN, which takes no parameters.
    """
    names = ", ".join("'" + key_id.replace("'", "''") + "'" for key_id in key_ids)
    return f"SELECT 1 FROM quotas WHERE key_id IN ({names}) ORDER BY key_id FOR UPDATE"  # noqa: S608 - quoted


class PostgresRoutes:
    """Records routes and their ends one transaction after the other, and remembers how each left the quotas."""

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions
        self._remembered = RememberedQuotas()
        self._turn = asyncio.Lock()
        """Two at once would remember what one of them left, and that needn't be the last. Who waits here while ends
        are written finds the quotas as they were left; who waits for the keys' rows would find them changed, and
        have to read them."""

    async def begin(
        self,
        generations: Sequence[NewGeneration],
        quota_clock: QuotaClock | None,
        left: RatesLeft | None = None,
    ) -> list[BrigadeError | None]:
        """As `generation_rows.begin_generations`, in a transaction of its own."""
        key_ids = {new.key_id for new in generations}
        async with self._turn:
            known = self._remembered.taken(key_ids)
            if any(new.continues is not None for new in generations):
                return await self._transactions.write_rows(
                    lambda rows: begin_generations(rows, generations, quota_clock, left)
                )
            step = await self._done_as_known(generations, quota_clock, known)
            if step is None:
                step = await self._transactions.write_natively(
                    key_locks(key_ids), partial(_done, generations, quota_clock, key_ids)
                )
            self._remembered.give_back(step.left)
            if left is not None:
                left.update(step.rates_left)
            return step.refusals

    async def _done_as_known(
        self, generations: Sequence[NewGeneration], quota_clock: QuotaClock | None, known: Known | None
    ) -> _Step | None:
        """What is done without reading; None: nothing, as something isn't known, isn't as it was, or is refused."""
        epoch = self._transactions.fence.epoch
        if known is None or epoch is None:
            return None
        step = _Step(generations, quota_clock, known)
        if not step.is_allowed:
            return None
        is_done = await self._transactions.write_at_once(partial(step.written_if_as_before, epoch))
        return step if is_done else None

    async def finish(
        self, ends: Sequence[ReportedEnd], quota_clock: QuotaClock | None
    ) -> list[StoredGeneration | None]:
        """As `generation_rows.finish_generations`, in a transaction of its own."""
        left: list[LockedQuota] = []
        async with self._turn:
            finished = await finish_natively(self._transactions, ends, quota_clock, left)
            if finished is None:
                finished = await self._transactions.write_rows(
                    lambda rows: finish_generations(rows, ends, quota_clock, left)
                )
            self._remembered.note_settled(left)
            return finished


class _Step:
    """What is decided by what is known, and what is written then."""

    def __init__(self, generations: Sequence[NewGeneration], quota_clock: QuotaClock | None, known: Known) -> None:
        self._known = known
        rows = {key_id: one for key_id, one in known.items() if one is not None}
        self._reserving = Reserving(
            {key_id: one.quota for key_id, one in rows.items()},
            {},
            {key_id: one.n_running for key_id, one in rows.items()},
        )
        self.rates_left: RatesLeft = {}
        self.refusals = decisions(self._reserving, generations, quota_clock, self.rates_left)
        both = zip(generations, self.refusals, strict=True)
        self._allowed = [new for new, refusal in both if refusal is None]

    @property
    def is_allowed(self) -> bool:
        """Whether all may be written."""
        return len(self._allowed) == len(self.refusals)

    @property
    def left(self) -> Known:
        """What there is once it is written."""
        return {
            key_id: None if one is None else one.left(self._reserving.n_running(key_id))
            for key_id, one in self._known.items()
        }

    async def write(self, native: asyncpg.Connection) -> None:
        """Write it."""
        if self._allowed or self._reserving.changed_quotas:
            await native.execute(_WRITE, *self._parameters())

    async def written_if_as_before(self, epoch: int, native: asyncpg.Connection) -> bool:
        """Write it if all is as it is known, and the lease is of this epoch; whether it was."""
        before = [
            quota_values(replace(one.quota, account=one.quota.stored))
            | {"key_id": key_id, "limits": one.limits_text}
            for key_id, one in self._known.items()
            if one is not None
        ]
        free = [key_id for key_id, one in self._known.items() if one is None]
        values = ([row[name] for row in before] for name in _BEFORE_NAMES)
        return bool(await native.fetchval(_WRITE_IF_AS_BEFORE, *self._parameters(), *values, free, epoch))

    def _parameters(self) -> Iterator[list[Any]]:
        held = [reservation_values(one) | {"key_id": one.key_id} for one in self._reserving.held]
        yield from quota_arrays(self._reserving.changed_quotas)
        yield from arrays_of(RESERVATIONS, HELD_NAMES, held)
        yield from arrays_of(GENERATIONS, BEGUN_NAMES, [new.values(None) for new in self._allowed])


async def _done(
    generations: Sequence[NewGeneration],
    quota_clock: QuotaClock | None,
    key_ids: Collection[KeyId],
    native: asyncpg.Connection,
) -> _Step:
    """Under `key_locks`."""
    step = _Step(generations, quota_clock, await _read(native, key_ids))
    await step.write(native)
    return step


async def _read(native: asyncpg.Connection, key_ids: Collection[KeyId]) -> Known:
    rows: list[Any] = await native.fetch(_READ, list(key_ids), record_class=Row)
    known: dict[KeyId, KnownQuota | None] = dict.fromkeys(key_ids)
    for row in rows:
        known[row.key_id] = KnownQuota(
            limits_text=row.limits_text, quota=locked_quota(row), n_running=row.n_running
        )
    return known
