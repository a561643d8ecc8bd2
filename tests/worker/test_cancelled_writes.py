"""A manifest or signature that is being written when its duty is cancelled: nobody else writes it meanwhile."""

from __future__ import annotations

import asyncio
import os
import random
import threading
from collections.abc import Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.author_keys import author_key_of
from protocol.control_messages import Assign, SpanAssignment
from protocol.ids import BlockRange, ModelName, Revision
from protocol.model_signature import sign
from tests.support.coordinators import running_coordinator
from tests.support.fetching import fetching_into, joined_sources
from tests.support.stored_model import add_model
from tests.support.tiny_checkpoint import CPU
from worker.authorship import Authorship
from worker.duties import KeeperLimits
from worker.engine import Engine
from worker.files import FileCache
from worker.holdings import Holdings
from worker.keeper import Keeper
from worker.model_folders import ModelFolders

_TURNS = 50
"""Of the loop: many more than a cancelled task needs that waits for nothing else."""


class SlowDisk:
    """Where every write to the end takes until it may."""

    def __init__(self) -> None:
        self.may_end = threading.Event()
        self.writes = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def fsync(self, _descriptor: int) -> None:
        self._loop.call_soon_threadsafe(self.writes.set)
        assert self.may_end.wait(20)

    async def outlasts(self, work: Coroutine[Any, Any, object]) -> bool:
        """Cancel `work` in the middle of its write; whether it waited for the end of that."""
        task = asyncio.get_running_loop().create_task(work)
        await self.writes.wait()
        task.cancel()
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        waits = not task.done()
        self.may_end.set()
        await asyncio.wait([task])
        return waits and task.cancelled()


async def test_a_manifest_is_written_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with (
        running_coordinator(tmp_path) as coordinator,
        aiohttp.ClientSession(auto_decompress=False) as http,
        Engine(device=CPU, kv_budget_bytes=1000, n_threads=1) as engine,
        asyncio.timeout(20),
    ):
        model = await add_model(coordinator)
        cache, holdings = FileCache(tmp_path / "cache"), Holdings()
        folders = ModelFolders(tmp_path / "models", cache)
        sources = await joined_sources(tmp_path, coordinator, http)
        keeper = Keeper(
            engine=engine,
            holdings=holdings,
            folders=folders,
            fetching=fetching_into(cache, sources, http),
            authorship=Authorship((), folders, sources.signature),
            limits=KeeperLimits(precision="float32", memory_bytes=10**9, kv_memory_bytes=None, drain_s=1.0),
            rng=random.Random(0),
            tell=lambda _line: None,
        )
        span = SpanAssignment(model=ModelName("tiny"), revision=model.revision, blocks=BlockRange(0, 1))
        holdings.assign(Assign(epoch=1, spans=(span,), reason="a test"))
        disk = SlowDisk()
        monkeypatch.setattr(os, "fsync", disk.fsync)
        assert await disk.outlasts(keeper.run())
        assert folders.manifest(model.revision) == model.manifest


async def test_a_signature_is_written_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    revision, key = Revision("a" * 64), Ed25519PrivateKey.generate()
    envelope = sign(revision, key, model="tiny", version="1", signer="Ada", at=datetime.now(UTC))
    (tmp_path / revision).mkdir()
    folders = ModelFolders(tmp_path, FileCache(tmp_path / "cache"))

    async def fetched(_revision: Revision) -> bytes:
        return envelope

    disk = SlowDisk()
    monkeypatch.setattr(os, "fsync", disk.fsync)
    async with asyncio.timeout(20):
        assert await disk.outlasts(Authorship((author_key_of(key),), folders, fetched).check(revision))
    assert folders.signature(revision) == envelope
