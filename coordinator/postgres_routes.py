"""Routes recorded on PostgreSQL in four round trips, where `generation_rows` takes eight: in its own statements.

The decisions are the same, and so are the values written. What differs is how they travel: the keys' rows are
locked along with BEGIN, read by one statement, and all that follows is written by one. Each of these sees what was
committed while the lock was waited for: one that locked and counted at once would count what ran before.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import asyncpg

from coordinator.generation_rows import QuotaClock, decisions
from coordinator.postgres_rows import QUOTA_NAMES, SAVED_QUOTAS, arrays_of, quota_arrays, quoted, rows_of
from coordinator.quota_records import GENERATIONS, RESERVATIONS, locked_quota, reservation_values
from coordinator.quota_rows import Reserving
from coordinator.stored_rows import NewGeneration
from protocol.errors import BrigadeError
from protocol.ids import KeyId

_RESERVATION_NAMES = tuple(column.name for column in RESERVATIONS.c if column.name != "id")
_GENERATION_NAMES = (
    *("session_id", "key_id", "model", "revision", "route", "n_prompt_tokens", "max_tokens", "started_at"),
    "continues",
)
_READ = (
    "SELECT quotas.*, (SELECT count(*) FROM reservations WHERE reservations.key_id = quotas.key_id AND is_open)"
    " AS n_running FROM quotas WHERE key_id = ANY($1)"
)
# Ids in the order of the reservations: that is their order in the queue.
_WRITE = f"""{SAVED_QUOTAS}, held AS (
    INSERT INTO reservations ({quoted(_RESERVATION_NAMES)})
    SELECT {quoted(_RESERVATION_NAMES)} FROM {rows_of(RESERVATIONS, _RESERVATION_NAMES, 1 + len(QUOTA_NAMES))}
    ORDER BY place RETURNING id, session_id
)
INSERT INTO generations ({quoted(_GENERATION_NAMES)}, reservation_id)
SELECT {", ".join(f'new."{name}"' for name in _GENERATION_NAMES)}, held.id
FROM {rows_of(GENERATIONS, _GENERATION_NAMES, 1 + len(QUOTA_NAMES) + len(_RESERVATION_NAMES))}
LEFT JOIN held ON held.session_id = new.session_id
"""  # noqa: S608 - names of ours, and numbers of parameters


class _Row(asyncpg.Record):  # type: ignore[misc]
    """A row whose columns are attributes, as those that SQLAlchemy gives."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def key_locks(key_ids: Collection[KeyId]) -> str:
    """The statement that locks these keys' rows, in order, so that two who lock several never wait for each other.

    It goes along with BEGIN, which takes no parameters.
    """
    names = ", ".join("'" + key_id.replace("'", "''") + "'" for key_id in key_ids)
    return f"SELECT 1 FROM quotas WHERE key_id IN ({names}) ORDER BY key_id FOR UPDATE"  # noqa: S608 - quoted


async def begin_generations_natively(
    connection: asyncpg.Connection, generations: Sequence[NewGeneration], quota_clock: QuotaClock | None
) -> list[BrigadeError | None]:
    """As `generation_rows.begin_generations`, of those that continue none, under `key_locks`."""
    key_ids = list({new.key_id for new in generations})
    rows: list[Any] = await connection.fetch(_READ, key_ids, record_class=_Row)
    running = {row.key_id: row.n_running for row in rows}
    reserving = Reserving({row.key_id: locked_quota(row) for row in rows}, {}, running)
    refusals = decisions(reserving, generations, quota_clock)
    allowed = [new for new, refusal in zip(generations, refusals, strict=True) if refusal is None]
    if allowed or reserving.changed_quotas:
        held = [reservation_values(one) | {"key_id": one.key_id} for one in reserving.held]
        await connection.execute(
            _WRITE,
            *quota_arrays(reserving.changed_quotas),
            *arrays_of(RESERVATIONS, _RESERVATION_NAMES, held),
            *arrays_of(GENERATIONS, _GENERATION_NAMES, [new.values(None) for new in allowed]),
        )
    return refusals
