from __future__ import annotations

import asyncio
import secrets
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from protocol.errors import WrongSecretError
from tests.support.coordinators import join_secret_of, running_coordinator
from worker.app import running
from worker.config import WorkerConfig
from worker.early_enrolment import early_credentials


def config_for(tmp_path: Path, *urls: str, secret: str) -> WorkerConfig:
    return WorkerConfig.from_env(
        environment={"BRIGADE_SECRET": secret},
        state=tmp_path / "worker",
        coordinator_urls=urls,
        device="cpu",
        n_threads=1,
        join_timeout_s=0.0,
    )


async def test_the_coordinator_knows_that_a_worker_is_starting_before_it_has_loaded_anything(
    tmp_path: Path,
) -> None:
    async with running_coordinator(tmp_path) as coordinator:
        config = config_for(tmp_path, coordinator.url, secret=join_secret_of(coordinator))
        credentials = await early_credentials(config)
        (known,) = coordinator.cluster.state.workers.values()
        assert (known.presence, known.starts_by_s is not None) == ("expected", True)

        assert credentials is not None
        async with running(config, credentials=credentials) as worker:
            assert worker.worker_id == known.worker_id
            async with asyncio.timeout(10):
                await worker.uplink.connected.wait()


async def test_a_wrong_secret_is_told_at_once(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator:
        config = config_for(tmp_path, coordinator.url, secret=secrets.token_urlsafe(32))
        with pytest.raises(WrongSecretError):
            await early_credentials(config)


async def test_who_is_away_or_to_be_searched_for_is_left_for_later(tmp_path: Path) -> None:
    config = config_for(tmp_path, "https://127.0.0.1:1", secret=secrets.token_urlsafe(32))
    assert await early_credentials(config) is None
    assert await early_credentials(replace(config, coordinator_urls=())) is None


def test_it_needs_no_torch() -> None:
    source = "import sys, worker.early_enrolment\nprint('torch' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, check=True, text=True, timeout=60)
    assert done.stdout.split() == ["False", "False"]
