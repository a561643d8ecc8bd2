"""Routes recorded on SQLite by plain statements, where `generation_rows` has SQLAlchemy make up each one anew.

The decisions are the same, and so are the values written.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from sqlite3 import Connection

from coordinator.generation_rows import QuotaClock, RatesLeft, begin_generations, decisions, finish_generations
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
from coordinator.sqlite_reports import finish_generations_plainly
from coordinator.sqlite_rows import QUOTA_COLUMNS, bound, inserting, places, read, saved_quotas, sent
from coordinator.stored_rows import NewGeneration, ReportedEnd, StoredGeneration
from coordinator.transactions import Transactions
from protocol.errors import BrigadeError

_HELD = sent(RESERVATIONS, HELD_NAMES)
_BEGUN = sent(GENERATIONS, [*BEGUN_NAMES, "reservation_id"])
_HOLD, _BEGIN = inserting(RESERVATIONS, _HELD), inserting(GENERATIONS, _BEGUN)
_READ = (
    f"SELECT {', '.join(name for name, _ in QUOTA_COLUMNS)},"  # noqa: S608 - names of ours
    " (SELECT count(*) FROM reservations WHERE reservations.key_id = quotas.key_id AND is_open IS 1)"
    " FROM quotas WHERE key_id IN ({})"
)


class SqliteRoutes:
    """Records routes and their ends, as `postgres_routes.PostgresRoutes` does."""

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions

    def coming(self) -> AbstractContextManager[None]:
        """As there."""
        return nullcontext()

    async def begin(
        self,
        due: Callable[[], Sequence[NewGeneration]],
        quota_clock: QuotaClock | None,
        left: RatesLeft | None = None,
    ) -> list[BrigadeError | None]:
        """As `generation_rows.begin_generations`, of those that are `due` now, in a transaction of its own."""
        generations = due()
        if not generations:
            return []
        if any(new.continues is not None for new in generations):
            return await self._transactions.write_rows(
                lambda rows: begin_generations(rows, generations, quota_clock, left)
            )
        return await self._transactions.write_plainly(
            lambda rows: begin_generations_plainly(rows, generations, quota_clock, left)
        )

    async def finish(
        self, ends: Sequence[ReportedEnd], quota_clock: QuotaClock | None
    ) -> list[StoredGeneration | None]:
        """As `generation_rows.finish_generations`, in a transaction of its own."""
        finished = await self._transactions.write_plainly(
            lambda rows: finish_generations_plainly(rows, ends, quota_clock)
        )
        if finished is not None:
            return finished
        return await self._transactions.write_rows(lambda rows: finish_generations(rows, ends, quota_clock))


def begin_generations_plainly(
    connection: Connection,
    generations: Sequence[NewGeneration],
    quota_clock: QuotaClock | None,
    left: RatesLeft | None = None,
) -> list[BrigadeError | None]:
    """As `generation_rows.begin_generations`, of those that continue none."""
    reserving = _reserving(connection, list({new.key_id for new in generations}))
    refusals = decisions(reserving, generations, quota_clock, left)
    if changed := reserving.changed_quotas:
        connection.executemany(*saved_quotas(changed))
    ids = {
        one.session_id: connection.execute(
            _HOLD, bound(_HELD, reservation_values(one) | {"key_id": one.key_id})
        ).lastrowid
        for one in reserving.held
    }
    for new, refusal in zip(generations, refusals, strict=True):
        if refusal is None:
            connection.execute(_BEGIN, bound(_BEGUN, new.values(ids.get(new.session_id))))
    return refusals


def _reserving(connection: Connection, key_ids: Collection[str]) -> Reserving:
    quotas: dict[str, LockedQuota] = {}
    running: dict[str, int] = {}
    for values in connection.execute(_READ.format(places(key_ids)), tuple(key_ids)).fetchall():
        row = read(QUOTA_COLUMNS, iter(values))
        quotas[row.key_id], running[row.key_id] = locked_quota(row), values[-1]
    return Reserving(quotas, {}, running)
