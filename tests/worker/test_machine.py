"""What a worker's memory is given to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from protocol.errors import ConfigError
from tests.support.cgroups import cgroup_v2
from tests.support.whole_cluster import packed_tiny
from worker.config import WorkerConfig
from worker.device import DeviceProfile, device_memory
from worker.device_speed import PrecisionSpeed
from worker.engine import Engine
from worker.machine import Machine, beside_draft_model, measured
from worker.usable import usable_cpus


async def test_a_draft_model_is_taken_out_of_the_memory_and_must_leave_some(tmp_path: Path) -> None:
    packed_tiny(tmp_path, "llama")
    config = WorkerConfig(
        coordinator_urls=("https://127.0.0.1:1",),
        secret="s" * 44,
        state=tmp_path,
        draft_model=tmp_path / "llama-0",
    )
    machine = Machine(profile=PROFILE, precision="float32", memory_bytes=10**8)
    said: list[str] = []
    async with Engine(device=PROFILE.device, kv_budget_bytes=10**8, n_threads=1) as engine:
        beside = await beside_draft_model(config, machine, engine, said.append)
        assert 0 < beside.memory_bytes < machine.memory_bytes - 10**6
        assert engine.stats().kv_budget_bytes < beside.memory_bytes
        assert [line.split(" where")[0] for line in said] == ["drafts with llama-0"]
        small = Machine(profile=PROFILE, precision="float32", memory_bytes=10**6)
        with pytest.raises(ConfigError, match=r"--draft-model .* MB, caches included, of 1\.0 MB: .* --memory"):
            await beside_draft_model(config, small, engine, said.append)
        greedy = replace(config, kv_memory_bytes=beside.memory_bytes)
        with pytest.raises(ConfigError, match=r"--kv-memory of .* MB that the draft model leaves: .* --memory"):
            await beside_draft_model(greedy, machine, engine, said.append)


def test_caches_that_leave_nothing_for_weights_are_refused(tmp_path: Path) -> None:
    config = WorkerConfig(
        coordinator_urls=("https://127.0.0.1:1",),
        secret="s" * 44,
        state=tmp_path,
        device="cpu",
        memory_bytes=10**9,
        kv_memory_bytes=10**9,
    )
    with pytest.raises(
        ConfigError, match=r"--kv-memory of 1,000\.0 MB leaves nothing .* of the 1,000\.0 MB .* --memory"
    ):
        measured(config)


def test_more_threads_than_this_machine_has_cpus_are_refused(tmp_path: Path) -> None:
    n_cpus = usable_cpus().n_cpus
    config = WorkerConfig(
        coordinator_urls=("https://127.0.0.1:1",),
        secret="s" * 44,
        state=tmp_path,
        device="cpu",
        n_threads=n_cpus + 1,
    )
    with pytest.raises(
        ConfigError, match=rf"--threads {n_cpus + 1}: this machine has {n_cpus} CPUs, .* 1 to {n_cpus}"
    ):
        measured(config)


def test_more_memory_than_the_device_has_is_refused(tmp_path: Path) -> None:
    has = device_memory(torch.device("cpu")).total_bytes
    config = WorkerConfig(
        coordinator_urls=("https://127.0.0.1:1",),
        secret="s" * 44,
        state=tmp_path,
        device="cpu",
        memory_bytes=has + 1,
    )
    with pytest.raises(ConfigError, match=rf"--memory of .* MB: cpu has {has / 1e6:,.1f} MB in all"):
        measured(config)


def test_a_container_leaves_the_memory_and_the_threads_that_its_cgroup_allows(tmp_path: Path) -> None:
    config = WorkerConfig(coordinator_urls=("https://127.0.0.1:1",), secret="s" * 44, state=tmp_path, device="cpu")
    n_threads = torch.get_num_threads()
    narrow = cgroup_v2(tmp_path, {"memory.max": str(2 * 10**9), "memory.current": "0", "cpu.max": "50000 100000"})
    try:
        machine = measured(config, narrow)
    finally:
        torch.set_num_threads(n_threads)
    assert machine.memory_bytes < 2 * 10**9
    assert machine.profile.free_memory_bytes == 2 * 10**9
    assert machine.profile.n_threads == 1
    with pytest.raises(ConfigError, match=r"--memory of .*: \S+/memory\.max allows 2,000\.0 MB in all"):
        measured(replace(config, memory_bytes=3 * 10**9), narrow)
    if usable_cpus().n_cpus > 1:
        with pytest.raises(ConfigError, match=r"--threads 2: \S+/cpu\.max allows 0\.5 of \d+ CPUs.* say 1 to 1"):
            measured(replace(config, n_threads=2), narrow)


def test_the_coordinator_is_told_what_caches_are_kept_in() -> None:
    machine = Machine(profile=PROFILE, precision="float32", memory_bytes=1, kv_precision="int8")
    assert machine.report().kv_precision == "int8"


PROFILE = DeviceProfile(
    device=torch.device("cpu"),
    name="some CPU",
    free_memory_bytes=10**9,
    memory_bytes_per_s=1e10,
    n_threads=1,
    speeds={"float32": PrecisionSpeed(decode_bytes_per_s=1e9, prefill_flops_per_s=1e9)},
)
