from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from coordinator import slow_starts
from coordinator.slow_starts import told_if_slow


async def test_what_takes_long_is_told_once_and_what_does_not_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slow_starts, "SLOW_S", 0.01)
    passed = asyncio.Event()
    with capture_logs() as logs:
        async with told_if_slow("the database x"):
            asyncio.get_running_loop().call_later(0.1, passed.set)
            await passed.wait()
    expected = {"event": "start_waits", "log_level": "warning", "waits_for": "the database x", "for_s": 0.01}
    assert logs == [expected]


async def test_whoever_is_quick_or_fails_is_not_told_of_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slow_starts, "SLOW_S", 0.01)
    passed = asyncio.Event()
    with capture_logs() as logs:
        async with told_if_slow("the database x"):
            pass
        with pytest.raises(KeyError):
            async with told_if_slow("the database x"):
                raise KeyError("mine")
        asyncio.get_running_loop().call_later(0.1, passed.set)
        await passed.wait()
    assert logs == []
