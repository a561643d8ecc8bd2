"""Routes recorded on SQLite by plain statements, where `generation_rows` has SQLAlchemy make up each one anew.

The decisions are the same, and so are the values written. SQLite itself takes a fraction of the time that goes by
around its statements, and all of that keeps the interpreter from the event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from sqlalchemy import Connection, Table
from sqlalchemy.dialects import sqlite

from coordinator.generation_rows import QuotaClock, decisions
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
from coordinator.stored_rows import NewGeneration
from protocol.errors import BrigadeError

_DIALECT = sqlite.dialect()
Processor = Callable[[Any], Any] | None


def _processors(table: Table, names: Sequence[str]) -> tuple[tuple[str, Processor], ...]:
    """What SQLAlchemy makes of a value of each column before SQLite gets it."""
    return tuple((name, table.c[name].type.dialect_impl(_DIALECT).bind_processor(_DIALECT)) for name in names)


_QUOTA = tuple(
    (column.name, column.type.dialect_impl(_DIALECT).result_processor(_DIALECT, None)) for column in QUOTAS.c
)
_SAVED = _processors(QUOTAS, [column.name for column in QUOTAS.c if column.name not in ("limits", "key_id")])
_HELD = _processors(RESERVATIONS, HELD_NAMES)
_BEGUN = _processors(GENERATIONS, [*BEGUN_NAMES, "reservation_id"])
_READ = (
    f"SELECT {', '.join(name for name, _ in _QUOTA)},"  # noqa: S608 - names of ours
    " (SELECT count(*) FROM reservations WHERE reservations.key_id = quotas.key_id AND is_open IS 1)"
    " FROM quotas WHERE key_id IN ({})"
)
_SAVE_QUOTA = f"UPDATE quotas SET {', '.join(f'{name} = ?' for name, _ in _SAVED)} WHERE key_id = ?"  # noqa: S608
_LAST_ID = "SELECT last_insert_rowid()"


def _insert(table: str, columns: Sequence[tuple[str, Processor]]) -> str:
    names = ", ".join(name for name, _ in columns)
    return f"INSERT INTO {table} ({names}) VALUES ({', '.join('?' * len(columns))})"  # noqa: S608 - as above


_HOLD, _BEGIN = _insert("reservations", _HELD), _insert("generations", _BEGUN)


def begin_generations_plainly(
    connection: Connection, generations: Sequence[NewGeneration], quota_clock: QuotaClock | None
) -> list[BrigadeError | None]:
    """As `generation_rows.begin_generations`, of those that continue none."""
    reserving = _reserving(connection, list({new.key_id for new in generations}))
    refusals = decisions(reserving, generations, quota_clock)
    allowed = [new for new, refusal in zip(generations, refusals, strict=True) if refusal is None]
    if saved := [(*_bound(_SAVED, quota_values(one)), one.key_id) for one in reserving.changed_quotas]:
        connection.exec_driver_sql(_SAVE_QUOTA, saved)
    ids: dict[str, int] = {}
    if held := reserving.held:
        connection.exec_driver_sql(
            _HOLD, [_bound(_HELD, reservation_values(one) | {"key_id": one.key_id}) for one in held]
        )
        # Ids count up by one while nobody else writes.
        last_id = connection.exec_driver_sql(_LAST_ID).scalar_one()
        ids = {one.session_id: last_id - len(held) + i for i, one in enumerate(held, start=1)}
    if allowed:
        connection.exec_driver_sql(_BEGIN, [_bound(_BEGUN, new.values(ids.get(new.session_id))) for new in allowed])
    return refusals


def _reserving(connection: Connection, key_ids: Collection[str]) -> Reserving:
    quotas: dict[str, LockedQuota] = {}
    running: dict[str, int] = {}
    for *values, n_running in connection.exec_driver_sql(
        _READ.format(", ".join("?" * len(key_ids))), tuple(key_ids)
    ):
        row: Any = SimpleNamespace(
            **{
                name: value if made is None else made(value)
                for (name, made), value in zip(_QUOTA, values, strict=True)
            }
        )
        quotas[row.key_id], running[row.key_id] = locked_quota(row), n_running
    return Reserving(quotas, {}, running)


def _bound(columns: Sequence[tuple[str, Processor]], row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] if made is None else made(row[name]) for name, made in columns)
