"""The process beside the client: a real one, asked over its pipes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from client import ends_process
from client.ends_process import EndsProcess, kept_environment, started_ends
from protocol.ends_messages import Done, EndsLoaded, LoadEnds
from protocol.errors import ConfigError, InternalError, NotFoundError, UntrustedFileError
from protocol.ids import Revision
from protocol.manifest import encode_manifest
from protocol.messages import SamplingParams
from tests.support.open_files import is_cut, nothing_left_open
from tests.support.whole_cluster import packed_tiny

pytestmark = pytest.mark.timeout(120)
LOAD = LoadEnds(
    number=0,
    revision=Revision("a" * 64),
    n_blocks_each=1,
    precision="float32",
    folder="/nowhere",
    coordinator_urls=("https://127.0.0.1:1",),
    ca_pem="",
    api_key="",
)
GREEDY = SamplingParams(max_tokens=1)
N_LONG = 3000
"""Positions whose hidden states are more than both pipes hold."""


@pytest.fixture
async def process() -> AsyncIterator[EndsProcess]:
    started = await started_ends()
    try:
        yield started
    finally:
        started.kill()
        await started.stop()


async def test_errors_come_back_as_they_are_a_cancelled_caller_disturbs_nobody_and_death_is_told(
    process: EndsProcess,
) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):  # it is still importing
            await process.begin(1, [1], 2, GREEDY, 1)
    with pytest.raises(NotFoundError, match="not loaded"):
        await process.begin(1, [1], 2, GREEDY, 1)
    with pytest.raises(UntrustedFileError, match="hash"):
        await process.ask(LOAD, EndsLoaded, b"not a manifest")
    process.kill()
    with pytest.raises(InternalError, match=r"ended \(exit code -9\)"):
        await process.ask(LOAD, Done)


async def loaded(process: EndsProcess, folder: Path) -> None:
    packed, _ = await asyncio.to_thread(packed_tiny, folder, "llama", max_position_embeddings=4096)
    packed.link_into(folder / "ends")
    load = replace(LOAD, revision=packed.model.revision, folder=str(folder / "ends"))
    await process.ask(load, EndsLoaded, encode_manifest(packed.model.manifest))


async def test_a_large_answer_that_nobody_took_is_not_in_the_way_of_a_large_request(
    process: EndsProcess, tmp_path: Path
) -> None:
    """Else both wait for each other: the process to be read from, the client to be read."""
    await loaded(process, tmp_path)
    text_id = process.new_text_id()
    await process.begin(text_id, [5] * N_LONG, N_LONG + 1, GREEDY, N_LONG)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001):
            await process.run_first(text_id, 0, N_LONG)
    async with asyncio.timeout(30):
        await process.begin(process.new_text_id(), [5] * 200_000, 200_001, GREEDY, 200_000)


async def test_a_text_whose_caller_left_is_freed_though_others_are_being_served(
    process: EndsProcess, tmp_path: Path
) -> None:
    await loaded(process, tmp_path)
    long, short = process.new_text_id(), process.new_text_id()
    await process.begin(long, [5] * N_LONG, N_LONG + 1, GREEDY, N_LONG)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(process.run_first(long, 0, N_LONG))
        await asyncio.sleep(0)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await process.begin(short, [5], 2, GREEDY, 1)
        process.forget(short)
        process.forget(long)
    for text_id in (long, short):
        with pytest.raises(NotFoundError, match="not begun"):
            await process.run_first(text_id, 0, 1)


async def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ends_process, "NEEDED", ("sys", "no_such_package"))
    with pytest.raises(ConfigError, match=r"no_such_package isn't installed .* pip install '.\[worker\]'"):
        await started_ends()


def test_no_key_of_the_client_is_in_the_environment_of_the_process() -> None:
    given = {"PATH": "/bin", "BRIGADE_API_KEY": "k", "AWS_SECRET": "s", "OMP_NUM_THREADS": "1", "HOME": "/root"}
    assert kept_environment(given) == {"PATH": "/bin", "OMP_NUM_THREADS": "1", "HOME": "/root"}


async def test_a_start_that_is_cancelled_at_any_moment_leaves_nothing_open() -> None:
    async def begun_and_ended() -> None:
        process = await started_ends()
        process.kill()
        await process.stop()

    with nothing_left_open():
        n_turns = 0
        while await is_cut(begun_and_ended(), n_turns) and n_turns < 50:
            n_turns += 1
        assert n_turns > 1


async def test_a_process_has_ended_when_a_stop_that_was_cancelled_returns() -> None:
    process = await started_ends()
    assert await is_cut(process.stop(), 1, n_times=2)
    assert not process.is_running
    assert process.said.closed
