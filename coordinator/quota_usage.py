"""Who used and who gave how much on which day: two ledgers, written with every report of a finished generation."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from datetime import date, datetime
from functools import cache
from typing import Any

from sqlalchemy import BindParameter, Connection, Executable, and_, bindparam, or_, select, tuple_
from sqlalchemy.dialects import postgresql, sqlite

from coordinator.persistence import insert_audit
from coordinator.policy.quota import MAX_CONTINUATIONS, Wanted, n_used
from coordinator.quota_records import GENERATIONS
from coordinator.stored_rows import StoredGeneration
from coordinator.table_base import Base, table_of
from coordinator.tables import ApiKeyRow, ContributionRow, UsageRow, WorkerOwnerRow
from coordinator.transactions import Transactions
from protocol.control_messages import GenerationReport
from protocol.ids import KeyId, WorkerId
from protocol.quota_rest import Contribution, UsageDay

USAGE_COUNTS = ("n_generations", "n_prompt_tokens", "n_completion_tokens")

_NAMES: BindParameter[Any] = bindparam("names", expanding=True)
_BEFORE = select(GENERATIONS).where(GENERATIONS.c.session_id.in_(_NAMES))
_OWNERS = select(table_of(WorkerOwnerRow)).where(WorkerOwnerRow.worker_id.in_(_NAMES))


def add_usage(
    connection: Connection,
    ended: Sequence[tuple[StoredGeneration, GenerationReport, datetime]],
    counted: Mapping[str, int],
) -> None:
    """Count sessions for their keys and for the workers of their routes, in the caller's transaction.

    One that goes on from another counts for the key only what wasn't reported before it: its answer, and the rest
    if the tails of those before died without a word. Should one of these be heard of after all, `counted` says how
    many of its tokens were. The workers ran all of it.
    """
    before = _reported_before(connection, [generation for generation, _, _ in ended])
    owners = _owners(connection, {hop[0] for generation, _, _ in ended for hop in generation.route})
    usage, contributions = ledger_rows(ended, before, counted, owners)
    _add(connection, UsageRow, usage, *USAGE_COUNTS)
    _add(connection, ContributionRow, contributions, "n_token_blocks")


def ledger_rows(
    ended: Sequence[tuple[StoredGeneration, GenerationReport, datetime]],
    before: Mapping[str, int],
    counted: Mapping[str, int],
    owners: Mapping[str, str],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What sessions add to usage and to contributions, by the names of columns.

    `before`: tokens that were reported of the sessions from which these go on; `counted` as in `add_usage`.
    """
    used: defaultdict[tuple[str, date], Counter[str]] = defaultdict(Counter)
    given: Counter[tuple[str, date]] = Counter()
    for generation, report, at in ended:
        n_tokens = n_used(
            Wanted(n_prompt_tokens=generation.n_prompt_tokens, max_tokens=generation.max_tokens),
            report.n_prompt_tokens,
            report.n_completion_tokens,
            has_failed=report.outcome == "failed",
            n_before=0,
        )
        n_completion = generation.n_completion_tokens or 0
        counts = used[generation.key_id, at.date()]
        n_before, n_counted = before.get(generation.session_id), counted.get(generation.session_id)
        if n_before is None and n_counted is None:
            counts["n_generations"] += 1
        if not n_before:
            counts["n_prompt_tokens"] += max(0, n_tokens - n_completion) if n_counted is None else 0
        counts["n_completion_tokens"] += n_completion if n_before else max(0, n_completion - (n_counted or 0))
        for worker_id, start, end in generation.route if n_tokens else ():
            given[worker_id, at.date()] += n_tokens * (end - start)
    usage = [
        {"key_id": key_id, "day": day} | {name: counts[name] for name in USAGE_COUNTS}
        for (key_id, day), counts in sorted(used.items())
    ]
    contributions = [
        {"worker_id": worker_id, "owner": owners.get(worker_id, ""), "day": day, "n_token_blocks": n}
        for (worker_id, day), n in sorted(given.items())
    ]
    return usage, contributions


class UsageBook:
    """The ledgers, for operators."""

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions

    async def usage(
        self,
        first: date,
        last: date,
        key_id: KeyId | None = None,
        *,
        after: tuple[date, str] | None = None,
        n_rows: int | None = None,
    ) -> tuple[UsageDay, ...]:
        """Usage of all keys or one on these days, newest first: so many rows, or all, after a day and key.

        Raises:
            StorageError: the database can't be used.
        """
        query = (
            select(UsageRow, ApiKeyRow.name)
            .join(ApiKeyRow, ApiKeyRow.key_id == UsageRow.key_id)
            .where(UsageRow.day >= first, UsageRow.day <= last)
            .order_by(UsageRow.day.desc(), UsageRow.key_id)
            .limit(n_rows)
        )
        if after is not None:
            day, key = after
            query = query.where(or_(UsageRow.day < day, and_(UsageRow.day == day, UsageRow.key_id > key)))
        if key_id is not None:
            query = query.where(UsageRow.key_id == key_id)
        async with self._transactions.reading() as session:
            return tuple(
                UsageDay(
                    key_id=KeyId(row.key_id),
                    name=name,
                    day=row.day.isoformat(),
                    n_generations=row.n_generations,
                    n_prompt_tokens=row.n_prompt_tokens,
                    n_completion_tokens=row.n_completion_tokens,
                )
                for row, name in await session.execute(query)
            )

    async def contributions(
        self,
        first: date,
        last: date,
        *,
        after: tuple[date, str, str] | None = None,
        n_rows: int | None = None,
    ) -> tuple[Contribution, ...]:
        """What workers gave on these days, newest first: so many rows, or all, after a day, owner and worker.

        Raises:
            StorageError: the database can't be used.
        """
        query = (
            select(ContributionRow)
            .where(ContributionRow.day >= first, ContributionRow.day <= last)
            .order_by(ContributionRow.day.desc(), ContributionRow.owner, ContributionRow.worker_id)
            .limit(n_rows)
        )
        if after is not None:
            day, *of_day = after
            is_later = tuple_(ContributionRow.owner, ContributionRow.worker_id) > tuple_(*of_day)
            query = query.where(or_(ContributionRow.day < day, and_(ContributionRow.day == day, is_later)))
        async with self._transactions.reading() as session:
            return tuple(
                Contribution(
                    worker_id=WorkerId(row.worker_id),
                    owner=row.owner,
                    day=row.day.isoformat(),
                    n_token_blocks=row.n_token_blocks,
                )
                for row in await session.scalars(query)
            )

    async def owners(self) -> dict[WorkerId, str]:
        """Whose machine each worker is, of those that are anybody's.

        Raises:
            StorageError: the database can't be used.
        """
        async with self._transactions.reading() as session:
            rows = await session.scalars(select(WorkerOwnerRow).where(WorkerOwnerRow.owner != ""))
            return {WorkerId(row.worker_id): row.owner for row in rows}

    async def keys_of(self, owners: Collection[str]) -> frozenset[KeyId]:
        """The keys that are these owners'.

        Raises:
            StorageError: the database can't be used.
        """
        async with self._transactions.reading() as session:
            query = select(ApiKeyRow.key_id).where(ApiKeyRow.owner.in_(owners))
            return frozenset(KeyId(key_id) for key_id in await session.scalars(query))

    async def set_owner(self, worker_id: WorkerId, owner: str, now: datetime) -> None:
        """From now on what this worker gives is this owner's; empty: nobody's in particular.

        Raises:
            StorageError: the database can't be used.
        """
        async with self._transactions.writing() as session:
            row = await session.get(WorkerOwnerRow, worker_id)
            if row is None:
                row = WorkerOwnerRow(worker_id=worker_id, owner="")
                session.add(row)
            details, before = f"{row.owner!r} to {owner!r}", {"owner": row.owner}
            insert_audit(
                session, now, "worker_owner_set", worker_id, details, before=before, after={"owner": owner}
            )
            row.owner = owner


def _reported_before(connection: Connection, ended: Sequence[StoredGeneration]) -> dict[str, int]:
    """Tokens that were reported of the sessions before each of these; those without a report aren't in it."""
    found: dict[str, int] = {}
    behind = {one.session_id: (one.key_id, one.continues) for one in ended if one.continues is not None}
    for _ in range(MAX_CONTINUATIONS):
        if not behind:
            break
        names = {before for _, before in behind.values()}
        rows = {row.session_id: row for row in connection.execute(_BEFORE, {"names": list(names)})}
        further = {}
        for session_id, (key_id, continues) in behind.items():
            row = rows.get(continues)
            if row is None or row.key_id != key_id:
                continue
            if row.outcome is not None:
                found[session_id] = found.get(session_id, 0) + (row.n_completion_tokens or 0)
            if row.continues is not None and not found.get(session_id):
                further[session_id] = (key_id, row.continues)
        behind = further
    return found


def _owners(connection: Connection, worker_ids: set[str]) -> dict[str, str]:
    return {row.worker_id: row.owner for row in connection.execute(_OWNERS, {"names": list(worker_ids)})}


def _add(connection: Connection, kind: type[Base], rows: Sequence[dict[str, Any]], *counts: str) -> None:
    """Insert the rows, or add their `counts` to those that are there."""
    if rows:
        connection.execute(_adding(kind, connection.dialect.name, counts), rows)


@cache
def _adding(kind: type[Base], dialect: str, counts: tuple[str, ...]) -> Executable:
    table = table_of(kind)
    insert = postgresql.insert if dialect == "postgresql" else sqlite.insert
    statement: Any = insert(table)
    added: Executable = statement.on_conflict_do_update(
        index_elements=list(table.primary_key.columns),
        set_={name: table.c[name] + statement.excluded[name] for name in counts},
    )
    return added
