from __future__ import annotations

import asyncio

import pytest

from protocol.errors import DrainingError, OverloadedError
from protocol.ids import SessionId
from worker.cache_plan import Reservation
from worker.memory_gate import MemoryGate


def reservation(name: str, n_bytes: int) -> Reservation:
    return Reservation(session_id=SessionId(name), n_positions=n_bytes, bytes_per_position=1, held_as="float32")


async def test_waiters_are_let_in_in_order() -> None:
    gate = MemoryGate(budget_bytes=10, max_waiting=6)
    order: list[str] = []

    async def enter(name: str, n_bytes: int) -> None:
        gate.request(reservation(name, n_bytes))
        await gate.wait(reservation(name, n_bytes), 30)
        order.append(name)

    async with asyncio.TaskGroup() as group:
        for name, n_bytes in (("a", 10), ("b", 9), ("c", 1), ("d", 10)):
            group.create_task(enter(name, n_bytes), name=name)
        for leaving, expected in (("a", ["a"]), ("b", ["a", "b", "c"]), ("c", ["a", "b", "c"])):
            while order != expected:  # noqa: ASYNC110 - a few turns of the loop, no time
                await asyncio.sleep(0)
            gate.release(SessionId(leaving))
    assert order == ["a", "b", "c", "d"]


async def test_a_deadline_ends_the_wait() -> None:
    gate = MemoryGate(budget_bytes=10, max_waiting=3)
    gate.request(reservation("a", 10))
    gate.request(reservation("b", 4))
    with pytest.raises(OverloadedError, match=r"waited 0\.01 s for 4 bytes.* 0 of 10 are free"):
        await gate.wait(reservation("b", 4), 0.01)


async def test_what_one_was_granted_another_can_be_given() -> None:
    gate = MemoryGate(budget_bytes=10, max_waiting=3)
    gate.request(reservation("a", 10))
    gate.shrink(SessionId("a"), 4)
    gate.exchange(SessionId("a"), reservation("b", 9))
    await gate.wait(reservation("b", 9), 0.01)
    gate.release(SessionId("a"))
    assert gate.plan.free_bytes == 1


async def test_who_waits_gets_what_another_needs_no_more() -> None:
    gate = MemoryGate(budget_bytes=10, max_waiting=3)
    gate.request(reservation("a", 10))
    gate.request(reservation("b", 4))
    async with asyncio.TaskGroup() as group:
        group.create_task(gate.wait(reservation("b", 4), 30), name="b")
        await asyncio.sleep(0)
        gate.shrink(SessionId("a"), 6)
    assert gate.plan.free_bytes == 0


async def test_all_waits_can_be_ended() -> None:
    gate = MemoryGate(budget_bytes=10, max_waiting=3)
    gate.request(reservation("a", 10))
    gate.request(reservation("b", 4))
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(_error_of(gate, "b"), name="b")
        await asyncio.sleep(0)
        gate.fail_all(DrainingError("stopping"))
    assert isinstance(waiting.result(), DrainingError)
    assert not gate.fail(SessionId("b"), DrainingError("no longer waiting"))


async def _error_of(gate: MemoryGate, name: str) -> Exception | None:
    try:
        await gate.wait(reservation(name, 4), 30)
    except DrainingError as exc:
        return exc
    return None
