from __future__ import annotations

import asyncio
from pathlib import Path

from aiohttp.test_utils import make_mocked_request

from protocol.file_answers import file_answer
from tests.support.open_files import WatchedThreads, is_open


async def test_a_file_that_was_asked_for_in_vain_is_closed_again(tmp_path: Path) -> None:
    """Who asked is gone while a thread opens it."""
    path, threads = tmp_path / "block-0", WatchedThreads(1)
    path.write_bytes(bytes(1000))
    asyncio.get_running_loop().set_default_executor(threads)
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        task = tasks.create_task(file_answer(make_mocked_request("GET", "/v1/files/0"), path))
        await threads.given[0].wait()
        task.cancel()
        threads.may_begin.set()
    await asyncio.to_thread(threads.jobs[0].result)
    assert task.cancelled()
    assert not is_open(path)
