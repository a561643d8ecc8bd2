"""One look at a time, for all who ask; never an older one than the question."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from coordinator.shared_look import SharedLook


class Looking:
    """Looks that are made once they may be."""

    def __init__(self) -> None:
        self.now = 0
        self.n_at_work = self.most_at_work = 0
        self.may_end = threading.Event()
        self.begun = asyncio.Event()

    def begin(self) -> Callable[[], int]:
        seen = self.now
        self.begun.set()

        def look() -> int:
            self.n_at_work += 1
            self.most_at_work = max(self.most_at_work, self.n_at_work)
            assert self.may_end.wait(10.0)
            self.n_at_work -= 1
            if seen < 0:
                raise ValueError(str(seen))
            return seen

        return look


async def test_all_who_ask_meanwhile_get_the_next_one_together() -> None:
    looking = Looking()
    shared = SharedLook(looking.begin)
    async with asyncio.timeout(20.0), asyncio.TaskGroup() as tasks:
        first = tasks.create_task(shared.get(), name="first")
        await looking.begun.wait()
        looking.now = 1  # changed since, so that the first look isn't good for the others
        others = [tasks.create_task(shared.get(), name=f"other {i}") for i in range(50)]
        await asyncio.sleep(0)
        looking.may_end.set()
        assert await first == 0
        assert {await other for other in others} == {1}
        looking.now = 2
        assert await shared.get() == 2
    assert looking.most_at_work == 1


async def test_who_goes_away_lets_nobody_begin_another_beside_it() -> None:
    looking = Looking()
    shared = SharedLook(looking.begin)
    async with asyncio.timeout(20.0), asyncio.TaskGroup() as tasks:
        first = tasks.create_task(shared.get(), name="first")
        await looking.begun.wait()
        others = [tasks.create_task(shared.get(), name=f"other {i}") for i in range(5)]
        await asyncio.sleep(0)
        first.cancel()
        others[0].cancel()
        await asyncio.sleep(0)
        looking.may_end.set()
        assert [await other for other in others[1:]] == [0] * 4
    assert looking.most_at_work == 1


async def test_an_error_is_told_to_who_looked_and_the_next_one_looks_again() -> None:
    looking = Looking()
    looking.may_end.set()
    shared = SharedLook(looking.begin)
    looking.now = -1
    with pytest.raises(ValueError, match="-1"):
        await shared.get()
    looking.now = 7
    assert await shared.get() == 7
