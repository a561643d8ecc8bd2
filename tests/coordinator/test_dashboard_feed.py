from __future__ import annotations

from contextlib import ExitStack

import pytest

from coordinator.dashboard_feed import MAX_STREAMS, MAX_STREAMS_OF_ONE, MAX_WAITING, DashboardFeed
from coordinator.policy.live import Look
from coordinator.policy.state import ClusterState
from protocol.errors import OverloadedError
from protocol.ids import KeyId

KEY = KeyId("k-1")


class Counted:
    """A cluster in which a number goes up whenever somebody looks."""

    def __init__(self) -> None:
        self.n_looks = 0

    async def __call__(self) -> Look:
        self.n_looks += 1
        return Look(
            state=ClusterState(),
            now_s=float(self.n_looks),
            note_of=lambda _: "",
            cluster={"n": self.n_looks},
            generations={},
        )


async def test_a_slow_reader_is_brought_up_to_date_and_holds_up_nobody() -> None:
    feed = DashboardFeed(Counted())
    with feed.reading(KEY, "slow") as slow, feed.reading(KEY, "quick") as quick:
        await feed.tell()
        assert b"event: snapshot" in await slow.get()
        assert b"event: snapshot" in await quick.get()
        for n in range(3 * MAX_WAITING):
            await feed.tell()
            assert slow.n_waiting <= MAX_WAITING
            assert f'"n":{n + 2}'.encode() in await quick.get()
        found = await slow.get()
        assert b"event: snapshot" in found
        assert f'"n":{3 * MAX_WAITING + 1}'.encode() in found
        assert slow.n_waiting == 0
        await feed.tell()
        assert await slow.get() is await quick.get(), "one encoding for all"


async def test_streams_are_bounded_and_nothing_begins_at_the_stop() -> None:
    feed = DashboardFeed(Counted())
    readings = [feed.reading(KEY, str(i)) for i in range(MAX_STREAMS)]
    streams = [reading.__enter__() for reading in readings]
    with pytest.raises(OverloadedError, match="64 pages"), feed.reading(KEY, "one too many"):
        pass
    feed.end_session("3")
    end = await streams[3].get()
    assert streams[3].is_end(end)
    feed.stop()
    assert b"stopping" in await streams[0].get()
    assert b"signed_out" in await streams[3].get()
    for reading in readings:
        reading.__exit__(None, None, None)


async def test_one_sign_in_leaves_streams_to_others() -> None:
    feed = DashboardFeed(Counted())
    with ExitStack() as stack:
        for _ in range(MAX_STREAMS_OF_ONE):
            stack.enter_context(feed.reading(KEY, "many tabs"))
        with pytest.raises(OverloadedError, match="at most 8"), feed.reading(KEY, "many tabs"):
            pass
        stack.enter_context(feed.reading(KEY, "another browser"))
        stack.enter_context(feed.reading(KEY, ""))
    with feed.reading(KEY, "many tabs"):
        pass
