"""Rows that PostgreSQL is sent as arrays: written by one statement, moved up as they are one by one, never cut."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from sqlalchemy import Connection

from coordinator.database import opened
from coordinator.policy.quota import Account, Meter, Reservation
from coordinator.postgres_rows import save_settled, settled_arrays
from coordinator.quota_records import (
    HeldReservation,
    locked_quotas,
    reservations_by_id,
    save_reservations,
)
from coordinator.repository import Repository
from protocol.errors import StorageError
from protocol.ids import KeyId
from protocol.key_limits import KeyLimits
from tests.support.postgres import PostgresServer

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


def held(key_id: str, i: int, *, is_open: bool = True) -> HeldReservation:
    one = Reservation(n_reserved=i, marks=(100.0 + i, 200.0 + i), is_open=is_open)
    return HeldReservation(key_id=key_id, session_id=f"{key_id}-{i}", held=one, expires_at=NOW)


async def test_what_is_settled_is_written_and_what_is_open_behind_it_moves_up(
    postgres_server: PostgresServer,
) -> None:
    async with opened(postgres_server.new_database()) as engine:
        repository = Repository(engine)
        for key_id in ("k0", "k1"):
            await repository.add_api_key(
                KeyId(key_id), "n", "client", "h", NOW, limits=KeyLimits(tokens_per_day=1000)
            )
        rows = [held("k0", i, is_open=i != 4) for i in range(6)] + [held("k1", i) for i in range(2)]

        def settle(connection: Connection) -> None:
            save_reservations(connection, rows)
            ids = [row.id or 0 for row in rows]
            quotas = locked_quotas(connection, ["k0", "k1"])
            meters = (Meter(used=1.0), Meter(used=2.0, entered=3.0), Meter(used=4.0, entered=5.0))
            quotas["k1"].account = Account(meters=meters, updated_s=NOW.timestamp() + 1)
            rows[1].held = Reservation(n_reserved=7, marks=(1.0, 2.0), n_used=7, is_open=False)
            moves = [("k0", ids[1], 1.0, 10.0), ("k0", ids[2], 0.5, 0.0)]
            save_settled(connection, settled_arrays(quotas.values(), [rows[1]], moves, ids[1:3]))
            marks = {i: row.held.marks for i, row in zip(ids, rows, strict=True)}
            marks[ids[3]], marks[ids[5]] = (103.0 - 1.5, 203.0 - 10.0), (105.0 - 1.5, 205.0 - 10.0)
            found = reservations_by_id(connection, ids)
            assert {i: one.held.marks for i, one in found.items()} == marks
            assert found[ids[1]] == rows[1]
            assert locked_quotas(connection, ["k1"])["k1"].account == quotas["k1"].account
            save_settled(connection, settled_arrays(quotas.values(), [], [], []))

        await repository.transactions.write_rows(settle)


async def test_what_is_too_long_is_refused_and_not_cut(postgres_server: PostgresServer) -> None:
    async with opened(postgres_server.new_database()) as engine:
        repository = Repository(engine)
        await repository.add_api_key(KeyId("k0"), "n", "client", "h", NOW, limits=KeyLimits(tokens_per_day=9))

        def settle(connection: Connection) -> None:
            row = held("k0", 1)
            save_reservations(connection, [row])
            row.session_id = "x" * 65
            save_settled(connection, settled_arrays([], [row], [], []))

        with pytest.raises(StorageError, match="too long"):
            await repository.transactions.write_rows(settle)
