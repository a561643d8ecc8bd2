"""Rows sent to PostgreSQL as one array a column, so that one statement, one round trip, writes rows of many tables.

The key's lock is held until all is written, and everybody's route waits for it meanwhile.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import asyncpg
import msgspec
from sqlalchemy import JSON, Connection, Table
from sqlalchemy.dialects import postgresql

from coordinator.quota_records import (
    QUOTAS,
    RESERVATIONS,
    HeldReservation,
    LockedQuota,
    quota_values,
    reservation_values,
)

QUOTA_NAMES = tuple(column.name for column in QUOTAS.c if column.name != "limits")
_RESERVATION_NAMES = tuple(column.name for column in RESERVATIONS.c if column.name != "key_id")
Move = tuple[str, int, float, float]
"""A key, a reservation of it, and by how much the minute's and the day's marks of later ones move up."""


class Row(asyncpg.Record):  # type: ignore[misc]
    """A row whose columns are attributes, as those that SQLAlchemy gives."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def quoted(names: Iterable[str]) -> str:
    """Columns as a statement names them; "end" is a word of SQL's."""
    return ", ".join(f'"{name}"' for name in names)


def rows_of(table: Table, names: Sequence[str], first: int, called: str = "new") -> str:
    """Rows of arrays that are parameters from `first` on; `place` is their order."""
    # Without their lengths: a cast would cut what is too long, where the column refuses it.
    types = [_type_of(table, name).partition("(")[0] for name in names]
    arrays = ", ".join(f"${first + i}::{type_name}[]" for i, type_name in enumerate(types))
    return f"unnest({arrays}) WITH ORDINALITY AS {called} ({quoted(names)}, place)"


def _type_of(table: Table, name: str) -> str:
    return table.c[name].type.compile(postgresql.dialect())  # type: ignore[no-untyped-call]


def arrays_of(table: Table, names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    """The parameters that `rows_of` takes."""
    return [
        [msgspec.json.encode(row[name]).decode() for row in rows]
        if isinstance(table.c[name].type, JSON)
        else [row[name] for row in rows]
        for name in names
    ]


def quota_arrays(quotas: Iterable[LockedQuota]) -> list[list[Any]]:
    """The first parameters of a statement with `saving_quotas`."""
    return arrays_of(QUOTAS, QUOTA_NAMES, [quota_values(quota) | {"key_id": quota.key_id} for quota in quotas])


def setting(names: Sequence[str]) -> str:
    """What a statement sets of all these columns but the first, by which the rows are found."""
    return ", ".join(f'"{name}" = new."{name}"' for name in names[1:])


def saving_quotas(condition: str = "true") -> str:
    """The part of a statement that writes the quotas which are its first parameters."""
    return (  # names of ours, and numbers of parameters: nothing of anybody else's
        f"saved AS (UPDATE quotas SET {setting(QUOTA_NAMES)}"  # noqa: S608
        f" FROM {rows_of(QUOTAS, QUOTA_NAMES, 1)} WHERE quotas.key_id = new.key_id AND {condition})"
    )


_FIRST_MOVE = 1 + len(QUOTA_NAMES) + len(_RESERVATION_NAMES)
FIRST_FREE = _FIRST_MOVE + 5
"""The first parameter of what is written along with what was settled."""


def settling(condition: str = "true") -> str:
    """The parts of a statement that write what was settled, its first parameters, where the condition is met."""
    return f"""{saving_quotas(condition)}, kept AS (
    UPDATE reservations SET {setting(_RESERVATION_NAMES)}
    FROM {rows_of(RESERVATIONS, _RESERVATION_NAMES, 1 + len(QUOTA_NAMES))}
    WHERE reservations.id = new.id AND {condition}
), moved_up AS (
    UPDATE reservations SET minute_mark = minute_mark - moved.by_minute, day_mark = day_mark - moved.by_day
    FROM (
        SELECT others.id, sum(given_back.by_minute) AS by_minute, sum(given_back.by_day) AS by_day
        FROM unnest(${_FIRST_MOVE}::VARCHAR[], ${_FIRST_MOVE + 1}::BIGINT[], ${_FIRST_MOVE + 2}::FLOAT8[],
            ${_FIRST_MOVE + 3}::FLOAT8[]) AS given_back (key_id, id, by_minute, by_day)
        JOIN reservations AS others ON others.key_id = given_back.key_id AND others.is_open
            AND others.id > given_back.id AND others.id <> ALL(${_FIRST_MOVE + 4}::BIGINT[])
        GROUP BY others.id
    ) AS moved WHERE reservations.id = moved.id AND {condition}
)"""  # noqa: S608 - as above


_SETTLE = f"WITH {settling()} SELECT"


def settled_arrays(
    quotas: Iterable[LockedQuota],
    reservations: Iterable[HeldReservation],
    moves: Sequence[Move],
    but: Collection[int],
) -> list[list[Any]]:
    """The parameters of `settling`."""
    changed = [quota for quota in quotas if quota.is_changed]
    kept = [reservation_values(one) | {"id": one.id} for one in reservations]
    return [
        *quota_arrays(changed),
        *arrays_of(RESERVATIONS, _RESERVATION_NAMES, kept),
        *([move[i] for move in moves] for i in range(4)),
        list(but),
    ]


def save_settled(connection: Connection, arrays: list[list[Any]]) -> None:
    """Write quotas and reservations, and move up what is open behind what was given back."""
    if any(arrays[:-1]):
        connection.exec_driver_sql(_SETTLE, tuple(arrays))
