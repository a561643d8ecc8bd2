"""A worker that loads a draft model is there meanwhile, and says what it waits for."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from protocol.errors import ConfigError
from tests.support.waiting import eventually
from tests.worker.test_app import cluster, is_ready, reported
from worker.app import running
from worker.draft_model import DraftModelInfo, DraftModelRequest
from worker.engine_core import EngineCore


async def test_a_worker_is_connected_while_its_draft_model_loads_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_load, load = threading.Event(), EngineCore.load_draft_model

    def load_when_told(core: EngineCore, request: DraftModelRequest) -> DraftModelInfo:
        may_load.wait(60.0)
        return load(core, request)

    monkeypatch.setattr(EngineCore, "load_draft_model", load_when_told)
    async with cluster(tmp_path) as it:
        try:
            worker = await it.join(draft_model=tmp_path / "checkpoint-tiny")
            await eventually(lambda: bool(reported(it, worker)))
            record = it.coordinator.cluster.state.workers[worker.worker_id]
            assert record.presence == "here"
            (status,) = reported(it, worker)
            assert status.state == "loading"
            assert status.reason.startswith("loading the draft model checkpoint-tiny first, about ")
            assert status.reason.endswith(" MB; next: find out what is missing of the blocks")
            assert record.device is not None
            assert record.device.memory_bytes < 10**8
        finally:
            may_load.set()
        await eventually(lambda: is_ready(worker))
        assert [line.split(" where")[0] for line in it.lines if line.startswith("drafts with")] == [
            "drafts with checkpoint-tiny"
        ]


async def test_a_draft_model_that_leaves_nothing_is_refused_before_the_worker_enrols(tmp_path: Path) -> None:
    async with cluster(tmp_path) as it:
        with pytest.raises(ConfigError, match=r"--draft-model .* takes .* caches included, of 1\.0 MB"):
            await it.join(draft_model=tmp_path / "checkpoint-tiny", memory_bytes=10**6)
        assert not it.coordinator.cluster.state.workers


async def test_a_draft_model_that_fails_to_load_ends_the_worker_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_core: EngineCore, request: DraftModelRequest) -> DraftModelInfo:
        raise ConfigError(f"--draft-model {request.path} can't be run")

    monkeypatch.setattr(EngineCore, "load_draft_model", fail)
    async with cluster(tmp_path) as it:
        with pytest.raises(ConfigError, match="checkpoint-tiny can't be run"):
            async with running(it.config(draft_model=tmp_path / "checkpoint-tiny")):
                await asyncio.Event().wait()
