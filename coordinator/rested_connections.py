"""Connections to PostgreSQL that rested in the pool: whether they still answer, before they are used again."""

from __future__ import annotations

import math
import time
from functools import partial
from typing import Any

from sqlalchemy import Dialect, event
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

PING_AFTER_S = 1.0
"""A connection that rested for longer is asked whether it is still there."""
_USED_S = "brigade_used_s"


def see_that_connections_answer(engine: AsyncEngine) -> None:
    """Have the engine's pool give out only those that do."""
    event.listen(engine.sync_engine, "checkin", _note_use)
    event.listen(engine.sync_engine, "checkout", partial(_see_that_it_answers, engine.dialect))


def _note_use(_connection: Any, record: ConnectionPoolEntry) -> None:
    record.info[_USED_S] = time.monotonic()


def _see_that_it_answers(
    dialect: Dialect, connection: Any, record: ConnectionPoolEntry, _proxy: PoolProxiedConnection
) -> None:
    """Before a connection is used again; `pool_pre_ping` would take three round trips each time.

    That the server has closed one is known without, and what else breaks them does so while they rest.

    Raises:
        DisconnectionError: it doesn't; the pool makes another one.
    """
    is_closed = connection.driver_connection.is_closed()
    rested_s = time.monotonic() - record.info.get(_USED_S, math.inf)
    if is_closed or (rested_s > PING_AFTER_S and not _answers(dialect, connection)):
        raise DisconnectionError


def _answers(dialect: Dialect, connection: Any) -> bool:
    try:
        return dialect.do_ping(connection)
    except dialect.loaded_dbapi.Error:
        return False
