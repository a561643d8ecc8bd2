"""Rows read and written on SQLite's own connection: columns, and what a value of each is to SQLite.

The values are those of `quota_records`. SQLite itself takes a fraction of the time that SQLAlchemy takes around its
statements, and all of that keeps the interpreter from the event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cache
from sqlite3 import Connection
from types import SimpleNamespace
from typing import Any

from sqlalchemy import Table
from sqlalchemy.dialects import sqlite

from coordinator.quota_records import QUOTAS, LockedQuota, quota_values

_DIALECT = sqlite.dialect()
Processor = Callable[[Any], Any] | None
Columns = tuple[tuple[str, Processor], ...]
"""Names, and what is made of a value of each on its way."""


def sent(table: Table, names: Collection[str]) -> Columns:
    """What SQLAlchemy makes of a value of each of these columns before SQLite gets it."""
    return tuple((name, table.c[name].type.dialect_impl(_DIALECT).bind_processor(_DIALECT)) for name in names)


@cache
def given(table: Table) -> Columns:
    """What SQLAlchemy makes of a value of each column that SQLite gives."""
    return tuple(
        (column.name, column.type.dialect_impl(_DIALECT).result_processor(_DIALECT, None)) for column in table.c
    )


def bound(columns: Columns, row: Mapping[str, Any]) -> tuple[Any, ...]:
    """The parameters that a statement takes of a row."""
    return tuple([row[name] if made is None else made(row[name]) for name, made in columns])


def read(columns: Columns, values: Iterator[Any]) -> Any:
    """The next of `values` as attributes, as SQLAlchemy's rows have them."""
    return SimpleNamespace(
        **{
            name: value if made is None else made(value)
            for (name, made), value in zip(columns, values, strict=False)
        }
    )


def rows_by(connection: Connection, table: Table, found_by: str, values: Collection[Any]) -> Iterator[Any]:
    """The rows whose `found_by` is one of `values`, as SQLAlchemy would give them."""
    if not values:
        return
    columns = given(table)
    names = ", ".join(f'"{name}"' for name, _ in columns)
    asked = f'SELECT {names} FROM {table.name} WHERE "{found_by}" IN ({places(values)})'  # noqa: S608 - names of ours
    for row in connection.execute(asked, tuple(values)).fetchall():
        yield read(columns, iter(row))


def inserting(table: Table, columns: Columns) -> str:
    """The statement that writes a new row."""
    names = ", ".join(f'"{name}"' for name, _ in columns)
    return f"INSERT INTO {table.name} ({names}) VALUES ({places(columns)})"  # noqa: S608 - names of ours


def updating(table: Table, columns: Columns, found_by: str) -> str:
    """The statement that writes these columns of the row whose `found_by` is its last parameter."""
    values = ", ".join(f'"{name}" = ?' for name, _ in columns)
    return f'UPDATE {table.name} SET {values} WHERE "{found_by}" = ?'  # noqa: S608 - as above


def places(values: Collection[Any]) -> str:
    """As many parameters as there are values."""
    return ", ".join("?" * len(values))


QUOTA_COLUMNS = given(QUOTAS)
_SAVED = sent(QUOTAS, [column.name for column in QUOTAS.c if column.name not in ("limits", "key_id")])
_SAVE_QUOTA = updating(QUOTAS, _SAVED, "key_id")


def saved_quotas(quotas: Sequence[LockedQuota]) -> tuple[str, list[tuple[Any, ...]]]:
    """The statement that writes what is used of keys, and what it is to be given for each."""
    return _SAVE_QUOTA, [(*bound(_SAVED, quota_values(one)), one.key_id) for one in quotas]
