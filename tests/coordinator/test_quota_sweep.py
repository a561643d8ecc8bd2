from __future__ import annotations

from datetime import UTC, datetime, timedelta

from sqlalchemy import func, select

from coordinator.database import opened
from coordinator.quota_book import MAX_KEYS_A_SWEEP, MAX_RESERVATIONS_A_SWEEP
from coordinator.quota_sweep import expire_due
from coordinator.repository import Repository
from coordinator.tables import ReservationRow
from protocol.ids import KeyId
from protocol.key_limits import KeyLimits

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


def reservation(key_id: str, age_s: float, *, is_open: bool) -> ReservationRow:
    return ReservationRow(
        key_id=key_id,
        session_id="s",
        n_reserved=1,
        n_used=0,
        n_sessions=1,
        minute_mark=0.0,
        day_mark=0.0,
        is_open=is_open,
        expires_at=NOW - timedelta(seconds=age_s),
    )


async def test_what_holds_a_place_comes_first_whoever_has_more_and_a_sweep_leaves_nothing_that_is_due(
    database_url: str,
) -> None:
    async with opened(database_url) as engine:
        repository = Repository(engine)
        keys = [KeyId(f"k{i:02}") for i in range(MAX_KEYS_A_SWEEP + 2)]
        for key_id in keys:
            await repository.add_api_key(
                key_id, "n", "client", "h", NOW, limits=KeyLimits(max_concurrent=1, tokens_per_min=9)
            )
        n_over = 2 * MAX_RESERVATIONS_A_SWEEP
        async with repository.transactions.writing() as session:
            session.add_all(reservation(keys[0], 9.0, is_open=False) for _ in range(n_over))
            session.add_all(reservation(key_id, 5.0, is_open=False) for key_id in keys)
            session.add(reservation(keys[-1], 1.0, is_open=True))
        assert await repository.quotas.expire(NOW) == MAX_RESERVATIONS_A_SWEEP
        assert (await repository.quotas.quota(keys[-1], NOW)).n_running == 0
        n_left = n_over + len(keys) + 1 - MAX_RESERVATIONS_A_SWEEP
        assert await expire_due(repository.quotas, NOW.timestamp) == n_left
        async with repository.transactions.reading() as session:
            due = select(func.count()).select_from(ReservationRow).where(ReservationRow.expires_at <= NOW)
            assert await session.scalar(due) == 0
