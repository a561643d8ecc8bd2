from __future__ import annotations

import asyncio
import gc
import secrets
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from coordinator.policy.state import WorkerRecord
from protocol.errors import StorageError, WrongSecretError
from protocol.exit_codes import EXIT_CANCELLED, EXIT_OK, EXIT_USAGE
from tests.support.announced import announced
from tests.support.coordinators import RunningCoordinator, join_secret_of, running_coordinator
from tests.support.paused_worker import AT_TORCH, paused_worker
from tests.support.waiting import eventually
from worker.app import running
from worker.config import WorkerConfig
from worker.early_enrolment import early_start
from worker.enrolment import Credentials, enrol, utc_now_s
from worker.goodbye import granted
from worker.identity import load_identity

pytestmark = pytest.mark.timeout(180)  # up to two programs that import torch, each with a minute of its own


def config_for(tmp_path: Path, *urls: str, secret: str) -> WorkerConfig:
    state = tmp_path / "worker"
    state.mkdir(mode=0o700, exist_ok=True)
    return WorkerConfig.from_env(
        environment={"BRIGADE_SECRET": secret},
        state=state,
        coordinator_urls=urls,
        device="cpu",
        n_threads=1,
        join_timeout_s=0.0,
    )


def only_worker(coordinator: RunningCoordinator) -> WorkerRecord:
    (known,) = coordinator.cluster.state.workers.values()
    return known


async def test_the_coordinator_knows_that_a_worker_is_starting_before_it_has_loaded_anything(
    tmp_path: Path,
) -> None:
    async with running_coordinator(tmp_path) as coordinator:
        config = config_for(tmp_path, coordinator.url, secret=join_secret_of(coordinator))
        start = await early_start(config, print)
        known = only_worker(coordinator)
        assert (known.presence, known.starts_by_s is not None) == ("expected", True)

        assert start.credentials is not None
        async with running(config, credentials=start.credentials) as worker:
            assert worker.worker_id == known.worker_id
            async with asyncio.timeout(10):
                await worker.uplink.connected.wait()


async def test_a_wrong_secret_is_told_at_once(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator:
        config = config_for(tmp_path, coordinator.url, secret=secrets.token_urlsafe(32))
        with pytest.raises(WrongSecretError):
            await early_start(config, print)


async def test_who_is_away_is_left_for_later(tmp_path: Path) -> None:
    config = config_for(tmp_path, "https://127.0.0.1:1", secret=secrets.token_urlsafe(32))
    start = await early_start(config, print)
    assert (start.config, start.credentials) == (config, None)


async def test_a_coordinator_that_is_searched_for_is_found_before_torch_is_loaded(tmp_path: Path) -> None:
    async with (
        running_coordinator(tmp_path) as coordinator,
        announced(coordinator.port) as coordinator_id,
        paused_worker(tmp_path / "worker", join_secret_of(coordinator)) as worker,
    ):
        await worker.said(f"found the coordinator {coordinator_id}")
        await worker.said(AT_TORCH)
        assert only_worker(coordinator).starts_by_s is not None
        worker.go_on()
        await worker.said("joined")
        worker.process.terminate()
        assert await worker.code() == EXIT_OK


async def test_the_state_folder_is_held_from_the_early_enrolment_on(tmp_path: Path) -> None:
    state = tmp_path / "worker"
    async with running_coordinator(tmp_path) as coordinator:
        secret = join_secret_of(coordinator)
        async with paused_worker(state, secret, coordinator.url) as first:
            await first.said(AT_TORCH)
            async with paused_worker(state, secret, coordinator.url) as second:
                assert "another worker runs with the state folder" in await second.errors()
                assert await second.code() == EXIT_USAGE
            first.go_on()
            await first.said("joined")


@pytest.mark.parametrize("is_in_background", [False, True])
async def test_a_worker_that_is_stopped_while_it_loads_torch_says_so(
    tmp_path: Path, *, is_in_background: bool
) -> None:
    async with running_coordinator(tmp_path) as coordinator:
        secret = join_secret_of(coordinator)
        async with paused_worker(
            tmp_path / "worker", secret, coordinator.url, is_in_background=is_in_background
        ) as worker:
            await worker.said(AT_TORCH)
            worker.process.terminate()
            assert await worker.code() == EXIT_CANCELLED
            assert await worker.errors() == "stopped before the worker had joined\n"
        assert only_worker(coordinator).presence == "gone"
        assert only_worker(coordinator).drain_reason == "it was stopped before it had joined"


async def test_a_setting_that_shows_to_be_wrong_after_torch_was_loaded_is_told_to_the_coordinator(
    tmp_path: Path,
) -> None:
    nothing = tmp_path / "no-model"
    async with running_coordinator(tmp_path) as coordinator:
        options = (coordinator.url, "--draft-model", str(nothing))
        async with paused_worker(tmp_path / "worker", join_secret_of(coordinator), *options) as worker:
            await worker.said(AT_TORCH)
            worker.go_on()
            assert str(nothing) in await worker.errors()
            assert await worker.code() == EXIT_USAGE
        known = await eventually(lambda: only_worker(coordinator), deadline_s=1.0)
        assert known.presence == "gone"
        assert str(nothing) in (known.drain_reason or "")


async def test_a_worker_that_is_stopped_while_it_enrols_says_so_once_it_was_let_in(tmp_path: Path) -> None:
    let_in, may_answer = asyncio.Event(), asyncio.Event()
    async with running_coordinator(tmp_path) as coordinator:
        config = config_for(tmp_path, coordinator.url, secret=join_secret_of(coordinator))
        identity = load_identity(config.state)

        async def enrolled() -> Credentials:
            credentials = await enrol(identity, config.coordinator_urls, join_secret_of(coordinator), utc_now_s)
            let_in.set()
            await may_answer.wait()  # its answer is on the way
            return credentials

        async with asyncio.TaskGroup() as tasks:
            start = tasks.create_task(granted(enrolled))
            await let_in.wait()
            assert only_worker(coordinator).presence == "expected"
            start.cancel()
            may_answer.set()
        assert start.cancelled()
        assert only_worker(coordinator).presence == "gone"
        assert only_worker(coordinator).drain_reason == "it was stopped before it had joined"


async def test_what_an_enrolment_that_was_given_up_says_is_no_complaint_of_the_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worker.goodbye._AT_MOST_S", 0.0)
    asked, complaints = asyncio.Event(), list[object]()
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: complaints.append(context))

    async def fails_at_its_end() -> Credentials:
        asked.set()
        try:
            await asyncio.Event().wait()
        finally:
            raise StorageError("no room for the certificate")

    async with asyncio.TaskGroup() as tasks:
        start = tasks.create_task(granted(fails_at_its_end))
        await asked.wait()
        start.cancel()
    assert start.cancelled()
    del start
    gc.collect()
    assert complaints == []


async def test_who_is_found_on_the_network_is_joined_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("worker.early_enrolment.enrol")  # a second enrolment would end here
    monkeypatch.delattr("worker.assembly.enrol")
    async with running_coordinator(tmp_path) as coordinator, announced(coordinator.port):
        config = replace(config_for(tmp_path, secret=join_secret_of(coordinator)), join_timeout_s=None)
        start = await early_start(config, print)
        assert start.credentials is not None
        assert start.config.coordinator_urls == (coordinator.url,)
        async with running(config) as worker, asyncio.timeout(20):
            await worker.uplink.connected.wait()


def test_it_needs_no_torch() -> None:
    source = "import sys, worker.early_enrolment\nprint('torch' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, check=True, text=True, timeout=60)
    assert done.stdout.split() == ["False", "False"]
