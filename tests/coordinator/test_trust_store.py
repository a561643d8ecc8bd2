from __future__ import annotations

from datetime import UTC, datetime

from coordinator.database import opened
from coordinator.policy.effects import DeleteTrust, SaveTrust, SumUpTrustEvents, TrustEventKind, WriteTrustEvent
from coordinator.policy.trust import Opinion, TrustRecord
from coordinator.repository import Repository
from protocol.ids import WorkerId

A, B = WorkerId("w-a"), WorkerId("w-b")
NOW_S = 1_800_000_000.0
RECORD = TrustRecord(
    opinions=(Opinion(reporter="key:k", kind="work", mass=1.5, at_s=NOW_S),),
    is_quarantined=True,
    quarantine_reason="hop_failed",
    pinned=0.25,
    banned_reason="it lies",
    n_events=7,
    accused_ago=(4, 0),
)


def event(number: int, worker_id: WorkerId = A, kind: TrustEventKind = "hop_failed") -> WriteTrustEvent:
    return WriteTrustEvent(
        at_s=NOW_S + number,
        worker_id=worker_id,
        kind=kind,
        reporter="key:k",
        weight=0.5,
        score_before=0.5,
        score_after=0.4,
        reason=f"number {number}\x00",
    )


async def test_what_is_kept_of_trust_is_loaded_and_deleted(database_url: str) -> None:
    async with opened(database_url) as engine:
        repository = Repository(engine)
        await repository.apply(
            [SaveTrust(worker_id=A, record=TrustRecord()), SaveTrust(worker_id=B, record=RECORD)]
        )
        await repository.apply([SaveTrust(worker_id=A, record=RECORD), DeleteTrust(worker_id=B)])
        assert (await repository.load_state()).trust == {A: RECORD}


async def test_who_is_forgotten_leaves_no_history(database_url: str) -> None:
    async with opened(database_url) as engine:
        repository = Repository(engine)
        await repository.apply([SaveTrust(worker_id=A, record=RECORD), *(event(i) for i in range(5))])
        await repository.apply([SumUpTrustEvents(worker_id=A, n_kept=2), event(9, B), DeleteTrust(worker_id=A)])
        assert await repository.trust_history(A) == ((), ())
        assert len((await repository.trust_history(B))[0]) == 1


async def test_older_events_are_summed_up_and_the_newest_kept(database_url: str) -> None:
    async with opened(database_url) as engine:
        repository = Repository(engine)
        await repository.apply([event(100, B), *(event(i) for i in range(6)), event(6, kind="work")])
        await repository.apply([SumUpTrustEvents(worker_id=A, n_kept=3)])
        await repository.apply([*(event(i, kind="work") for i in range(7, 10)), event(10)])
        await repository.apply([SumUpTrustEvents(worker_id=A, n_kept=2), SumUpTrustEvents(worker_id=B, n_kept=2)])
        events, older = await repository.trust_history(A)
        assert [(found.reason, found.kind) for found in events] == [
            ("number 10", "hop_failed"),
            ("number 9", "work"),
        ]
        sums = {part.kind: (part.n_events, part.weight, part.first_at, part.last_at) for part in older}
        assert sums == {"hop_failed": (6, 3.0, at(0), at(5)), "work": (3, 1.5, at(6), at(8))}
        assert len((await repository.trust_history(B))[0]) == 1
        assert (await repository.trust_history(WorkerId("w-c"))) == ((), ())


def at(number: int) -> str:
    return datetime.fromtimestamp(NOW_S + number, UTC).isoformat(timespec="seconds")
