from __future__ import annotations

import asyncio
import hashlib
import os
import re
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from coordinator.app import RunningCoordinator
from coordinator.file_store import FileStore
from coordinator.packing.pack import pack_model
from protocol.control_messages import SpanStatus
from protocol.errors import (
    BrigadeError,
    ConfigError,
    ConflictError,
    InternalError,
    PortInUseError,
    WrongSecretError,
)
from protocol.ids import BlockRange, ModelName
from tests.support.coordinators import http_session, join_secret_of, key_of, running_coordinator
from tests.support.measured_once import measure_once
from tests.support.tiny_models import N_BLOCKS, TINY_CONFIGS, save_tiny_model
from tests.support.tiny_tokenizer import tiny_files
from tests.support.waiting import eventually
from worker.app import RunningWorker, running
from worker.config import WorkerConfig
from worker.engine_core import EngineCore


class Cluster:
    """A real coordinator with a tiny model, and workers that join it."""

    def __init__(self, coordinator: RunningCoordinator, tmp_path: Path, stack: AsyncExitStack) -> None:
        self.coordinator, self.tmp_path, self.stack = coordinator, tmp_path, stack
        self.lines: list[str] = []

    def config(self, name: str = "worker", **changes: Any) -> WorkerConfig:
        options: dict[str, Any] = {
            "coordinator_urls": (self.coordinator.url,),
            "secret": join_secret_of(self.coordinator),
            "state": self.tmp_path / name,
            "device": "cpu",
            "precision": "float32",
            "n_threads": 1,
            "memory_bytes": 10**8,
            "drain_s": 5.0,
        }
        return WorkerConfig(**(options | changes))

    async def join(self, name: str = "worker", **changes: Any) -> RunningWorker:
        return await self.stack.enter_async_context(running(self.config(name, **changes), tell=self.lines.append))

    async def add_model(self, name: str, architecture: str = "llama", seed: int = 0) -> None:
        def pack() -> Any:
            folder = self.tmp_path / f"checkpoint-{name}"
            save_tiny_model(TINY_CONFIGS[architecture](), folder, seed=seed)
            for file_name, data in tiny_files().items():
                if not (folder / file_name).exists():
                    (folder / file_name).write_bytes(data)
            store = FileStore(self.coordinator.state_folder.files)
            return pack_model(str(folder), store, lambda *_: None)

        packed = await asyncio.to_thread(pack)
        await self.coordinator.catalogue.add(name, packed.revision)


@asynccontextmanager
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    measure_once()
    async with running_coordinator(tmp_path) as coordinator, AsyncExitStack() as stack:
        made = Cluster(coordinator, tmp_path, stack)
        await made.add_model("tiny")
        yield made


def is_ready(worker: RunningWorker, *blocks: BlockRange) -> bool:
    ready = [status.blocks for status in worker.holdings.statuses if status.state == "ready"]
    return bool(ready) and set(ready) >= set(blocks) and len(ready) == len(worker.holdings.statuses)


async def test_a_worker_joins_downloads_loads_and_is_ready(tmp_path: Path) -> None:
    async with cluster(tmp_path) as it:
        worker = await it.join()
        await eventually(lambda: is_ready(worker, BlockRange(0, N_BLOCKS)))
        ready = (
            f"ready: blocks 0:{N_BLOCKS} of tiny in float32 on cpu; caches in float32, room for [0-9,]+ positions"
        )
        assert re.fullmatch(ready, it.lines[-1])
        assert "secret" not in " ".join(it.lines)
        (held,) = worker.holdings.held
        assert worker.holdings.span_for(*_names(worker), BlockRange(1, 2)) == held.loaded.key
        record = it.coordinator.cluster.state.workers[worker.worker_id]
        await eventually(lambda: it.coordinator.cluster.state.workers[worker.worker_id].reported)
        assert record.url == worker.url == f"https://127.0.0.1:{worker.port}"


def reported(it: Cluster, worker: RunningWorker) -> tuple[SpanStatus, ...]:
    """What the coordinator was told of its spans."""
    return it.coordinator.cluster.state.workers[worker.worker_id].reported


def _names(worker: RunningWorker) -> tuple[Any, Any]:
    (status,) = worker.holdings.statuses
    return status.model, status.revision


async def test_a_restarted_worker_keeps_identity_and_files(tmp_path: Path) -> None:
    async with cluster(tmp_path) as it:
        async with running(it.config()) as worker:
            first = worker.worker_id
            await eventually(lambda: is_ready(worker))
        async with running(it.config(), tell=it.lines.append) as worker:
            await eventually(lambda: is_ready(worker))
            assert worker.worker_id == first
        assert not [line for line in it.lines if "downloading" in line]


async def test_an_accelerator_that_is_left_unused_is_said_by_the_worker_and_in_the_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho NVIDIA H100\n")
    tool.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    async with cluster(tmp_path) as it:
        worker = await it.join(device="auto")
        await eventually(lambda: is_ready(worker))
        (warning,) = [line for line in it.lines if line.startswith("WARNING")]
        assert "this machine has an NVIDIA H100, but torch" in warning
        assert "Mend it: " in warning
        await eventually(lambda: any(status.note for status in reported(it, worker)))
        (status,) = reported(it, worker)
        assert status.note.startswith(
            "on the CPU, many times slower than it could be: this machine has an NVIDIA H100"
        )


async def test_the_second_worker_gets_files_from_the_first(tmp_path: Path) -> None:
    async with cluster(tmp_path) as it:
        first = await it.join("first", pinned_blocks=BlockRange(0, N_BLOCKS))
        await eventually(lambda: is_ready(first))
        await eventually(lambda: it.coordinator.cluster.state.workers[first.worker_id].files)
        # the coordinator's own copies are wrecked: only the first worker has good ones
        for path in (it.coordinator.state_folder.files / "files").glob("??/*"):
            if hashlib.sha256(path.read_bytes()).hexdigest() in first.holdings.files:
                path.chmod(0o600)
                path.write_bytes(b"wrecked")
        second = await it.join("second", pinned_blocks=BlockRange(0, 2))
        await eventually(lambda: is_ready(second))


async def test_two_models_are_held_at_once_and_a_removed_one_is_dropped(tmp_path: Path) -> None:
    async with cluster(tmp_path) as it:
        worker = await it.join()
        await eventually(lambda: is_ready(worker))
        await it.add_model("other", "qwen2", seed=1)
        await eventually(lambda: is_ready(worker) and len(worker.holdings.statuses) == 2)
        await it.coordinator.catalogue.remove("other")
        await eventually(lambda: len(worker.holdings.held) == 1)
        assert any("dropped" in line for line in it.lines)
        kept = {span.revision for span in worker.holdings.wanted}
        await eventually(lambda: {path.name for path in (tmp_path / "worker" / "models").iterdir()} == kept)


async def test_a_span_that_does_not_fit_is_reported_with_numbers(tmp_path: Path) -> None:
    async with cluster(tmp_path) as it:
        worker = await it.join(memory_bytes=20_000, pinned_blocks=BlockRange(0, N_BLOCKS))
        await eventually(lambda: [s for s in worker.holdings.statuses if s.state == "failed"])
        assert "MB of memory" in worker.holdings.statuses[0].reason
        assert worker.holdings.held == ()


async def test_an_altered_model_file_is_fetched_again(tmp_path: Path) -> None:
    async with cluster(tmp_path) as it:
        async with running(it.config()) as worker:
            await eventually(lambda: is_ready(worker))
        victim = max((tmp_path / "worker" / "cache" / "files").glob("??/*"), key=lambda path: path.stat().st_size)
        victim.chmod(0o600)
        victim.write_bytes(b"x" * victim.stat().st_size)
        async with running(it.config()) as worker:
            await eventually(lambda: is_ready(worker))
        assert await asyncio.to_thread(lambda: hashlib.sha256(victim.read_bytes()).hexdigest()) == victim.name


async def test_a_cache_too_small_says_so_and_tries_again(tmp_path: Path) -> None:
    async with cluster(tmp_path) as it:
        worker = await it.join(cache_bytes=1000)
        await eventually(lambda: [s for s in worker.holdings.statuses if "--cache-size" in s.reason])
        (status,) = worker.holdings.statuses
        assert status.state == "failed"
        assert "try again" in status.reason


async def test_told_to_drain_it_asks_its_owner_to_end_it(tmp_path: Path) -> None:
    async with cluster(tmp_path) as it, running(it.config()) as worker:
        await eventually(lambda: is_ready(worker))
        async with http_session(it.coordinator, key_of(it.coordinator, "admin")) as http:
            await http.ask("POST", f"/admin/v1/workers/{worker.worker_id}/drain")
        await asyncio.wait_for(worker.departure.asked.wait(), 10)


async def test_a_stopped_worker_is_gone_for_the_coordinator(tmp_path: Path) -> None:
    async with cluster(tmp_path) as it:
        async with running(it.config()) as worker:
            await eventually(lambda: is_ready(worker))
            await worker.drain()
            await worker.drain()
        await eventually(lambda: not it.coordinator.cluster.state.workers[worker.worker_id].is_connected)
        assert it.coordinator.cluster.state.workers[worker.worker_id].has_said_leaving


async def test_hurried_it_waits_for_nobody(tmp_path: Path) -> None:
    async with cluster(tmp_path) as it, asyncio.timeout(20):
        async with running(it.config(drain_s=3600.0)) as worker:
            worker.departure.ask("first reason")
            worker.departure.ask("second reason")
            worker.departure.hurry()
        assert worker.departure.reason == "first reason"


async def test_a_broken_device_ends_the_worker(tmp_path: Path) -> None:
    async with cluster(tmp_path) as it, asyncio.timeout(30):
        with pytest.raises(InternalError, match="has to be restarted"):
            await _run_on_a_broken_device(it)


async def _run_on_a_broken_device(it: Cluster) -> None:
    def broken(_core: EngineCore) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access")

    async with running(it.config()) as worker:
        worker.engine._link.post(broken)
        await worker.departure.asked.wait()


async def test_an_error_of_the_block_comes_out_as_it_is(tmp_path: Path) -> None:
    async with cluster(tmp_path) as it:
        with pytest.raises(ZeroDivisionError):
            async with running(it.config()):
                raise ZeroDivisionError


async def test_a_wrong_secret_comes_out_and_leaves_nothing_open(tmp_path: Path) -> None:
    async with cluster(tmp_path) as it:
        for _ in range(2):
            with pytest.raises(WrongSecretError):
                await it.join(secret=secrets.token_urlsafe(32))


async def test_two_workers_on_one_state_folder_are_refused(tmp_path: Path) -> None:
    async with cluster(tmp_path) as it:
        await it.join()
        with pytest.raises(ConfigError, match="--state"):
            await it.join()


async def test_a_copied_state_folder_ends_the_worker_that_was_there_first(tmp_path: Path) -> None:
    async with cluster(tmp_path) as it:
        with pytest.raises(ConflictError):
            await _run_beside_a_copy(it)


async def _run_beside_a_copy(it: Cluster) -> None:
    async with running(it.config("one")) as one:
        await one.uplink.connected.wait()
        copy = it.tmp_path / "two"
        copy.mkdir()
        (copy / "identity.key").write_bytes((it.tmp_path / "one" / "identity.key").read_bytes())
        (copy / "identity.key").chmod(0o600)
        await it.join("two")
        await asyncio.sleep(20)


async def test_a_port_in_use_is_its_own_error(tmp_path: Path) -> None:
    async with cluster(tmp_path) as it:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            with pytest.raises(PortInUseError, match="--listen"):
                await it.join(listen_host="127.0.0.1", listen_port=taken.getsockname()[1])
        with pytest.raises(BrigadeError, match="--listen"):
            await it.join(listen_host="192.0.2.1")


async def test_what_cant_be_compiled_is_served_and_the_coordinator_hears_why(tmp_path: Path) -> None:
    async with cluster(tmp_path) as it:
        await it.add_model("bloom", "bloom")
        pinned = {"pinned_model": ModelName("bloom"), "pinned_blocks": BlockRange(0, N_BLOCKS)}
        worker = await it.join(compiles=True, **pinned)
        await eventually(lambda: is_ready(worker))
        because = "isn't compiled: its code can't run several sessions at once"
        assert any(line.startswith("ready: ") and because in line for line in it.lines)

        def heard() -> bool:
            reported = it.coordinator.cluster.state.workers[worker.worker_id].reported
            return any(because in said.note for said in reported)

        await eventually(heard)
