"""Which of the processes beside a client are kept. They run nothing of a model here."""

from __future__ import annotations

import asyncio
import tempfile
from typing import Any

import pytest

from client import private_ends
from client.ends_process import EndsProcess
from client.private_ends import IDLE_S, JUST_USED_S, MAX_IDLE, PrivateEnds
from protocol.ids import Revision


class Kept(PrivateEnds):
    """With processes that a test put there."""

    def __init__(self) -> None:
        super().__init__(None, None, None)  # type: ignore[arg-type] - nothing is loaded

    async def put(self, idle_s: float) -> EndsProcess:
        return await put(self, idle_s)


async def put(ends: PrivateEnds, idle_s: float) -> EndsProcess:
    """A process that was last asked so long ago."""
    said, pipe = tempfile.TemporaryFile(), asyncio.subprocess.PIPE  # noqa: SIM115 - closed with the process
    process = EndsProcess(await asyncio.create_subprocess_exec("cat", stdin=pipe, stdout=pipe), said)
    process.used_s = asyncio.get_running_loop().time() - idle_s
    ends._processes[Revision("r"), len(ends._processes), "float32"] = process
    return process


async def test_what_nobody_uses_is_ended_after_a_while_and_the_longest_idle_of_many() -> None:
    kept = Kept()
    try:
        just_used = [await kept.put(JUST_USED_S / 2) for _ in range(MAX_IDLE)]
        busy = await kept.put(2 * IDLE_S)
        text_id = busy.new_text_id()
        idle = [await kept.put(60.0 + place) for place in range(MAX_IDLE)]
        old = [await kept.put(61.0 + MAX_IDLE), await kept.put(IDLE_S)]
        await kept.end_idle()
        assert all(process.is_running for process in (*just_used, busy, *idle))
        assert not any(process.is_running for process in old)
        busy.forget(text_id)
        busy.used_s -= IDLE_S
        await kept.end_idle()
        assert not busy.is_running
        assert all(process.is_running for process in idle)
    finally:
        await kept.close()


async def test_an_idle_process_is_ended_though_no_other_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds a part of a model in memory, in a client that may run for weeks."""
    monkeypatch.setattr(private_ends, "_LOOK_S", 0.01)
    nothing: Any = None  # is loaded
    async with asyncio.timeout(20), private_ends.private_ends(nothing, nothing, nothing) as ends:
        used, idle = await put(ends, 0.0), await put(ends, IDLE_S)
        await idle.process.wait()
        assert used.is_running
    assert used.said.closed
    assert idle.said.closed


async def test_what_is_raised_inside_comes_out_as_it_is() -> None:
    nothing: Any = None
    with pytest.raises(KeyError) as raised:
        async with private_ends.private_ends(nothing, nothing, nothing):
            raise KeyError("mine") from OSError("theirs")
    assert isinstance(raised.value.__cause__, OSError)
