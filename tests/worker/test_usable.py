"""What of a machine a process in a container may use."""

from __future__ import annotations

from pathlib import Path

import psutil

from tests.support.cgroups import cgroup_v2
from worker.cgroups import CpuLimit
from worker.usable import UsableCpus, usable_cpus, usable_memory


def test_without_limits_it_is_the_machine(tmp_path: Path) -> None:
    memory, cpus = usable_memory(tmp_path), usable_cpus(tmp_path)
    assert (memory.total_bytes, memory.total_from) == (psutil.virtual_memory().total, None)
    assert 0 < memory.free_bytes <= memory.total_bytes
    assert memory.free_from is None
    assert cpus.limit is None
    assert (cpus.n_most_threads, cpus.n_full_threads, cpus.share(64)) == (cpus.n_cpus, cpus.n_cpus, 1.0)


def test_the_smaller_of_machine_and_limit_counts(tmp_path: Path) -> None:
    narrow = {"memory.max": "1000000", "memory.current": "400000", "cpu.max": "50000 100000"}
    memory = usable_memory(cgroup_v2(tmp_path, narrow))
    assert (memory.total_bytes, memory.free_bytes) == (1_000_000, 600_000)
    assert memory.total_from == memory.free_from == f"{tmp_path}/sys/fs/cgroup/memory.max"
    limit = usable_cpus(tmp_path).limit
    assert limit is not None
    assert limit.n_cpus == 0.5


def test_limits_wider_than_the_machine_are_none(tmp_path: Path) -> None:
    cgroup_v2(tmp_path, {"memory.max": str(2**60), "cpu.max": "99999999 1000"})
    assert usable_memory(tmp_path).total_from is None
    assert usable_cpus(tmp_path).limit is None


def test_a_part_of_a_processor_is_for_one_more_thread_but_not_in_full() -> None:
    cpus = UsableCpus(n_cpus=8, limit=CpuLimit(n_cpus=2.5, file="cpu.max"))
    assert (cpus.n_full_threads, cpus.n_most_threads) == (2, 3)
    assert (cpus.share(1), cpus.share(2), cpus.share(5)) == (1.0, 1.0, 0.5)
    half = UsableCpus(n_cpus=8, limit=CpuLimit(n_cpus=0.5, file="cpu.max"))
    assert (half.n_full_threads, half.n_most_threads, half.share(1)) == (1, 1, 0.5)
