"""Routes recorded on PostgreSQL in one round trip or four, in its own statements: `generation_rows` takes eight.

The decisions are the same, and so are the values written. What differs is how they travel. Where the keys' rows are
as this coordinator left them, and it still holds the lease, one statement sees that and writes: nobody else writes
reservations then. Else the rows are locked along with BEGIN, read by one statement, and all that follows is written
by one. Each of these sees what was committed while the lock was waited for: one that locked and counted at once
would count what ran before. Refusals are always decided so: more may seem to run than does.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import asyncpg

from coordinator.generation_rows import QuotaClock, RatesLeft, begin_generations, decisions, finish_generations
from coordinator.postgres_known import as_known, known_arrays
from coordinator.postgres_reports import ReadReports, SettledReports, read_reports
from coordinator.postgres_rows import QUOTA_NAMES, Row, arrays_of, quota_arrays, quoted, rows_of, saving_quotas
from coordinator.quota_records import (
    BEGUN_NAMES,
    GENERATIONS,
    HELD_NAMES,
    RESERVATIONS,
    LockedQuota,
    locked_quota,
    reservation_values,
)
from coordinator.quota_rows import Reserving
from coordinator.remembered_quotas import Known, KnownQuota, RememberedQuotas
from coordinator.routes_first import RoutesFirst
from coordinator.stored_rows import NewGeneration, ReportedEnd, StoredGeneration
from coordinator.transactions import Transactions
from protocol.errors import BrigadeError
from protocol.ids import KeyId

_READ = (
    "SELECT quotas.*, limits::text AS limits_text, (SELECT count(*) FROM reservations"
    " WHERE reservations.key_id = quotas.key_id AND is_open) AS n_running FROM quotas WHERE key_id = ANY($1)"
)
_FIRST_HELD = 1 + len(QUOTA_NAMES)
_FIRST_BEGUN = _FIRST_HELD + len(HELD_NAMES)
_FIRST_KNOWN = _FIRST_BEGUN + len(BEGUN_NAMES)


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


_WRITE = f"WITH {_writing('true')} SELECT"
_PARTS, _AS_KNOWN = as_known(_FIRST_KNOWN)
_WRITE_IF_AS_KNOWN = f"""WITH {_PARTS}, may AS MATERIALIZED (SELECT {_AS_KNOWN} AS be),
{_writing("(SELECT be FROM may)")} SELECT be FROM may"""  # noqa: S608 - as above


def key_locks(key_ids: Collection[KeyId]) -> str:
    """The statement that locks these keys' rows, in order, so that two who lock several never wait for each other.

    It goes along with BEGIN, which takes no parameters.
    """
    names = ", ".join("'" + key_id.replace("'", "''") + "'" for key_id in key_ids)
    return f"SELECT 1 FROM quotas WHERE key_id IN ({names}) ORDER BY key_id FOR UPDATE"  # noqa: S608 - quoted


N_TRIES = 3
"""To save reports by what was read before; what is written to that often goes the longer way."""


class PostgresRoutes:
    """Records routes and their ends one transaction after the other, and remembers how each left the quotas."""

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions
        self._remembered = RememberedQuotas()
        self._turn = RoutesFirst()
        """Two at once would remember what one of them left, and that needn't be the last. Who waits here while ends
        are written finds the quotas as they were left; who waits for the keys' rows would find them changed, and
        have to read them."""

    def coming(self) -> AbstractContextManager[None]:
        """While it lasts, routes are to be recorded: reports wait for them, but not for ever."""
        return self._turn.coming()

    async def begin(
        self,
        due: Callable[[], Sequence[NewGeneration]],
        quota_clock: QuotaClock | None,
        left: RatesLeft | None = None,
    ) -> list[BrigadeError | None]:
        """As `generation_rows.begin_generations`, in a transaction of its own.

        Of those that are `due` when its turn has come: who came while others were written waits no second time.
        """
        async with self._turn.of_routes():
            generations = due()
            if not generations:
                return []
            key_ids = {new.key_id for new in generations}
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
        self, generations: Sequence[NewGeneration], quota_clock: QuotaClock | None, known: Known
    ) -> _Step | None:
        """What is done without reading; None: nothing, as something isn't known, isn't as it was, or is refused."""
        epoch = self._transactions.fence.epoch
        if len(known) < len({new.key_id for new in generations}) or epoch is None:
            return None
        step = _Step(generations, quota_clock, known)
        if not step.is_allowed:
            return None
        is_done = await self._transactions.write_at_once(partial(step.written_if_as_known, epoch))
        return step if is_done else None

    async def finish(
        self, ends: Sequence[ReportedEnd], quota_clock: QuotaClock | None
    ) -> list[StoredGeneration | None]:
        """As `generation_rows.finish_generations`, in a transaction of its own."""
        n_tries = 0 if self._transactions.fence.epoch is None else N_TRIES
        for _ in range(n_tries):
            read = await read_reports(self._transactions, ends)
            if read is None:
                break
            if not read.done or await self._saved_as_read(read, quota_clock):
                return read.finished
        left: list[LockedQuota] = []
        async with self._turn.of_reports():
            finished = await self._transactions.write_rows(
                lambda rows: finish_generations(rows, ends, quota_clock, left)
            )
            self._remembered.note_settled(left)
            return finished

    async def _saved_as_read(self, read: ReadReports, quota_clock: QuotaClock | None) -> bool:
        """Whether it is written, as nothing that was read has changed meanwhile but what is remembered."""
        async with self._turn.of_reports():
            epoch, remembered = self._transactions.fence.epoch, self._remembered.taken(read.known)
            if epoch is None:
                return False
            settled = SettledReports(read, {**read.known, **remembered}, quota_clock)
            is_done = await self._transactions.write_at_once(partial(settled.written_if_as_known, epoch))
            if is_done:
                self._remembered.give_back({key_id: settled.left(key_id) for key_id in remembered})
            return is_done


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

    async def written_if_as_known(self, epoch: int, native: asyncpg.Connection) -> bool:
        """Write it if all is as it is known, and the lease is of this epoch; whether it was."""
        known = known_arrays(self._known, epoch)
        return bool(await native.fetchval(_WRITE_IF_AS_KNOWN, *self._parameters(), *known))

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
