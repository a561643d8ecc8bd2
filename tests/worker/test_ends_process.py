"""The process that runs a model's ends, when whoever started it is gone. What it answers: tests/client."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from protocol.ends_messages import LoadEnds
from protocol.file_locks import try_lock
from protocol.frames import encode_parts
from protocol.manifest import encode_manifest
from tests.support.whole_cluster import packed_tiny

pytestmark = pytest.mark.timeout(120)
WITHIN_S = 90.0


async def test_it_ends_with_its_client_whatever_it_does(tmp_path: Path) -> None:
    """It waits for the files, which may take hours; a client that is killed can't tell it to stop."""
    packed, _ = await asyncio.to_thread(packed_tiny, tmp_path, "llama")
    load = LoadEnds(
        number=1,
        revision=packed.model.revision,
        n_blocks_each=1,
        precision="float32",
        folder=str(tmp_path),
        coordinator_urls=("https://127.0.0.1:1",),
        ca_pem="",
        api_key="",
    )
    held = try_lock(tmp_path / "lock")
    assert held is not None
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "worker.ends_process", stdin=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdin is not None
        process.stdin.write(encode_parts(load, encode_manifest(packed.model.manifest)))
        await process.stdin.drain()
        process.stdin.close()
        async with asyncio.timeout(WITHIN_S):
            assert await process.wait() == 0
    finally:
        held.release()
        if process.returncode is None:
            process.kill()
            await process.wait()
