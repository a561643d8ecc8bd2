from __future__ import annotations

import asyncio
from contextlib import ExitStack

import pytest

from coordinator import waiting_room
from coordinator.waiting_room import MAX_WAITING_PER_KEY, WaitingRoom
from protocol.errors import DrainingError, OverloadedError
from protocol.ids import KeyId

K1, K2 = KeyId("k1"), KeyId("k2")


def here() -> bool:
    return False


def test_there_are_so_many_places_for_a_key_and_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    room = WaitingRoom()
    with ExitStack() as stack:
        for _ in range(MAX_WAITING_PER_KEY):
            stack.enter_context(room.place(K1))
        with pytest.raises(OverloadedError, match=f"{MAX_WAITING_PER_KEY} requests of this key") as caught:
            stack.enter_context(room.place(K1))
        assert caught.value.retry_after_s
        stack.enter_context(room.place(K2))
        monkeypatch.setattr(waiting_room, "MAX_WAITING", len(room))
        with pytest.raises(OverloadedError, match=f"{MAX_WAITING_PER_KEY + 1} requests wait"):
            stack.enter_context(room.place(K2))
    assert len(room) == 0


async def test_a_wait_ends_at_the_change_or_when_its_time_is_over() -> None:
    room, changed = WaitingRoom(), asyncio.Event()
    async with asyncio.timeout(5):
        await room.change(changed, 0.01, is_gone=here)
        await room.change(changed, -1.0, is_gone=here)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(room.change(changed, 600.0, is_gone=here), name="waiting")
            changed.set()


async def test_a_caller_that_hung_up_waits_no_longer() -> None:
    with pytest.raises(ConnectionError):
        await WaitingRoom().change(asyncio.Event(), 0.01, is_gone=lambda: True)


async def test_who_waits_at_the_stop_and_who_comes_after_is_sent_away() -> None:
    room = WaitingRoom()
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(refused(room), name="waiting")
        await asyncio.sleep(0)
        room.stop()
        await waiting
        await refused(room)


async def refused(room: WaitingRoom) -> None:
    with pytest.raises(DrainingError):
        await room.change(asyncio.Event(), 600.0, is_gone=here)
