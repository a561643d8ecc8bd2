from __future__ import annotations

import dataclasses
import random
from datetime import UTC, datetime

import pytest
from msgspec.structs import replace

from coordinator import audit_store
from coordinator.audit_store import AuditStore, RecordedAnswer
from coordinator.database import opened
from coordinator.policy.audit_probe import N_POSITIONS, N_SUMS
from coordinator.policy.audit_rules import Held
from coordinator.repository import Repository
from protocol.audit_rest import AuditInfo
from protocol.ids import BlockRange, ModelName, Revision, WorkerId

NOW = datetime(2026, 11, 22, 1, 2, 3, tzinfo=UTC)
REVISION, BLOCKS = Revision("r" * 64), BlockRange(3, 7)


def info(number: int) -> AuditInfo:
    return AuditInfo(
        at="2026-11-22T01:02:03+00:00",
        worker_id=WorkerId("w-a"),
        model=ModelName("m"),
        blocks=BLOCKS,
        partner="w-b",
        referee="",
        outcome="suspected",
        partner_outcome="suspected",
        difference=0.25,
        allowed=None,
        reason=f"number {number}",
    )


def answer(number: int, held: Held) -> RecordedAnswer:
    rng = random.Random(number)
    rows = tuple(tuple(rng.randrange(-99, 99) / 8 for _ in range(N_SUMS)) for _ in range(N_POSITIONS))
    return RecordedAnswer(held=held, seed=f"seed {number}", worker_id=WorkerId("w-a"), projection=rows)


async def test_the_newest_findings_are_kept(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_store, "MAX_FINDINGS", 3)
    async with opened(database_url) as engine:
        store = AuditStore(Repository(engine).transactions)
        for number in range(5):
            await store.save(info(number), NOW)
        (_, newest), (before_id, next_one) = await store.newest(2)
        assert (newest, next_one) == (info(4), info(3))
        assert [one for _, one in await store.newest(10, before_id=before_id)] == [info(2)]
        assert await store.newest(10, worker="w-nobody") == ()
        passed = [replace(info(number), outcome="passed", partner_outcome="passed") for number in range(5, 9)]
        for each in passed:
            await store.save(each, NOW)
        kept = [one for _, one in await store.newest(10, worker="w-b")]
        assert kept == [*passed[:0:-1], info(4), info(3), info(2)]  # what went well pushes out nothing else


async def test_one_worker_pushes_out_its_own_answers_alone(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_store, "MAX_ANSWERS_IN_ALL", 7)
    monkeypatch.setattr(audit_store, "MAX_ANSWERS_OF_ONE", 4)
    exact = Held(weights="float32")
    async with opened(database_url) as engine:
        store = AuditStore(Repository(engine).transactions)
        await store.record(REVISION, BLOCKS, answer(0, exact), NOW)
        other = [dataclasses.replace(answer(n, exact), worker_id=WorkerId("w-b")) for n in range(1, 9)]
        for each in other:
            await store.record(REVISION, BLOCKS, each, NOW)
        found = {one.seed for one in await store.recorded(REVISION, BLOCKS)}
        assert found == {"seed 0", "seed 5", "seed 6", "seed 7", "seed 8"}
        for number in range(3):  # of other ranges: the oldest of all go
            await store.record(REVISION, BlockRange(0, number + 1), answer(number, exact), NOW)
        assert "seed 0" not in {one.seed for one in await store.recorded(REVISION, BLOCKS)}


async def test_the_newest_answers_of_each_range_and_form_are_kept_as_they_were(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_store, "MAX_ANSWERS", 2)
    exact, rounded = Held(weights="float32"), Held(weights="bfloat16", kv="int8")
    async with opened(database_url) as engine:
        store = AuditStore(Repository(engine).transactions)
        for number, held in enumerate([exact, rounded, exact, exact, rounded]):
            await store.record(REVISION, BLOCKS, answer(number, held), NOW)
        await store.record(REVISION, BlockRange(0, 7), answer(9, exact), NOW)
        found = await store.recorded(REVISION, BLOCKS)
        assert {one.seed: one for one in found} == {
            f"seed {number}": answer(number, held)
            for number, held in ((1, rounded), (2, exact), (3, exact), (4, rounded))
        }
        assert await store.recorded(Revision("q" * 64), BLOCKS) == ()
