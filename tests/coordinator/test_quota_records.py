"""What is written together is there as it was, in the order of the queue, whatever else is written with it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection

from coordinator.database import opened
from coordinator.policy.quota import Account, Meter, Reservation
from coordinator.quota_records import (
    HeldReservation,
    forget_reservations,
    locked_quotas,
    n_running,
    reservations_by_id,
    reservations_due,
    save_quotas,
    save_reservations,
)
from coordinator.repository import Repository
from protocol.ids import KeyId
from protocol.key_limits import KeyLimits

NOW = datetime(2026, 11, 21, 12, 0, 0, 123457, tzinfo=UTC)
LIMITS = KeyLimits(tokens_per_min=1000, max_concurrent=7, models=("m",))


def held(i: int, *, is_open: bool = True) -> HeldReservation:
    one = Reservation(n_reserved=i, marks=(i + 0.1, i + 0.2), n_used=i // 2, n_sessions=1 + i, is_open=is_open)
    return HeldReservation(key_id=f"k{i % 2}", session_id=f"s{i}", held=one, expires_at=NOW + timedelta(seconds=i))


async def test_what_is_written_together_is_read_again_in_the_order_of_the_queue(database_url: str) -> None:
    async with opened(database_url) as engine:
        repository = Repository(engine)
        for key_id in ("k0", "k1"):
            await repository.add_api_key(KeyId(key_id), "n", "client", "h", NOW, limits=LIMITS)
        await repository.add_api_key(KeyId("unlimited"), "n", "client", "h", NOW)
        rows = [held(i, is_open=i != 5) for i in range(12)]

        def write(connection: Connection) -> None:
            save_reservations(connection, rows[:1])
            rows[0].held = Reservation(n_reserved=10**12, marks=(0.5, 0.25))
            save_reservations(connection, rows)
            assert [row.id for row in rows] == sorted(row.id or 0 for row in rows)
            quotas = locked_quotas(connection, ["k1", "unlimited", "k0", "k2"])
            assert list(quotas) == ["k0", "k1"]
            assert quotas["k1"].limits == LIMITS
            quotas["k1"].account = Account(
                meters=(Meter(used=1.5), Meter(used=2.5, entered=9.25), Meter(used=3.5, entered=8.75)),
                updated_s=(NOW + timedelta(days=1, microseconds=1)).timestamp(),
            )
            save_quotas(connection, quotas.values())

        def read(connection: Connection) -> None:
            ids = [row.id for row in rows if row.id is not None]
            assert list(reservations_by_id(connection, ids).values()) == rows
            assert n_running(connection, ["k0", "k1"]) == {"k0": 6, "k1": 5}
            due = reservations_due(connection, ["k1"], NOW + timedelta(seconds=7), 3)
            assert [one.session_id for one in due.values()] == ["s1", "s3", "s7"]
            quota = locked_quotas(connection, ["k1"])["k1"]
            assert quota.account.meters[2] == Meter(used=3.5, entered=8.75)
            assert quota.account.updated_s == (NOW + timedelta(days=1, microseconds=1)).timestamp()
            forget_reservations(connection, ids[1:])
            assert list(reservations_by_id(connection, ids).values()) == rows[:1]

        await repository.transactions.write_rows(write)
        await repository.transactions.write_rows(read)
