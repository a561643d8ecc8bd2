from __future__ import annotations

import asyncio
from contextlib import ExitStack

import pytest

from coordinator import waiting_room
from coordinator.waiting_room import MAX_WAITING_PER_KEY, Asker, WaitingRoom
from protocol.errors import DrainingError, OverloadedError
from protocol.ids import KeyId

K1, K2 = Asker(KeyId("k1")), Asker(KeyId("k2"))


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


def test_a_key_has_no_more_places_than_are_left_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting_room, "MAX_WAITING", 7)
    room = WaitingRoom()
    with ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(room.place(K1))
        with pytest.raises(OverloadedError, match=r"4 requests of this key .* 3 places are left"):
            stack.enter_context(room.place(K1))
        stack.enter_context(room.place(K2))


async def test_each_keys_first_request_looks_before_any_keys_second() -> None:
    room, changed, looked, all_looked = WaitingRoom(), asyncio.Event(), [], asyncio.Barrier(14)
    high, low = Asker(KeyId("high"), "high"), Asker(KeyId("low"), "low")

    async def wait(asker: Asker) -> None:
        with room.place(asker) as place:
            await room.change(place, changed, 600.0, is_gone=here)
            looked.append(asker.key_id)
            await all_looked.wait()  # they keep their places meanwhile

    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        for asker in (low, *[K1] * 9, K2, *[high] * 3):
            tasks.create_task(wait(asker), name=asker.key_id)
        await asyncio.sleep(0)
        changed.set()
    assert looked[:3] == ["high"] * 3
    assert set(looked[3:5]) == {"k1", "k2"}
    assert looked[5:7] == ["k1", "k1"], "the first of a low class comes with the fourth of a normal one"
    assert set(looked[7:9]) == {"k1", "low"}


async def test_a_wait_ends_at_the_change_or_when_its_time_is_over() -> None:
    room, changed = WaitingRoom(), asyncio.Event()
    with room.place(K1) as place:
        async with asyncio.timeout(5):
            await room.change(place, changed, 0.01, is_gone=here)
            await room.change(place, changed, -1.0, is_gone=here)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(room.change(place, changed, 600.0, is_gone=here), name="waiting")
                changed.set()


async def test_a_caller_that_hung_up_waits_no_longer() -> None:
    room = WaitingRoom()
    with room.place(K1) as place, pytest.raises(ConnectionError):
        await room.change(place, asyncio.Event(), 0.01, is_gone=lambda: True)


async def test_who_waits_at_the_stop_and_who_comes_after_is_sent_away() -> None:
    room = WaitingRoom()
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(refused(room), name="waiting")
        await asyncio.sleep(0)
        room.stop()
        await waiting
        await refused(room)


async def refused(room: WaitingRoom) -> None:
    with room.place(K1) as place, pytest.raises(DrainingError):
        await room.change(place, asyncio.Event(), 600.0, is_gone=here)
