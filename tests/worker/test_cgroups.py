"""What control groups allow, in roots that hold nothing but their files."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.cgroups import GB, cgroup_v1, cgroup_v2
from worker.cgroups import cpu_limit, memory_limits

STAT = "anon 700\nfile 300\nactive_file 100\ninactive_file 150\nslab_reclaimable 50\n"


def test_without_cgroups_nothing_limits(tmp_path: Path) -> None:
    assert memory_limits(tmp_path) == ()
    assert cpu_limit(tmp_path) is None


def test_a_container_of_version_2_is_read_at_the_top_of_what_it_sees(tmp_path: Path) -> None:
    files = {"memory.max": str(2 * GB), "memory.current": "1000", "memory.stat": STAT, "cpu.max": "150000 100000"}
    (memory,) = memory_limits(cgroup_v2(tmp_path, files))
    assert (memory.limit_bytes, memory.free_bytes) == (2 * GB, 2 * GB - 700)
    assert memory.file == str(tmp_path / "sys/fs/cgroup/memory.max")
    cpu = cpu_limit(tmp_path)
    assert cpu is not None
    assert (cpu.n_cpus, cpu.file) == (1.5, str(tmp_path / "sys/fs/cgroup/cpu.max"))


@pytest.mark.parametrize(
    ("own", "mounted"), [("/docker/abc", "/docker/abc"), ("/../../else", "/"), ("/a", "/b"), ("/", "/")]
)
def test_a_part_of_the_hierarchy_that_is_all_that_is_seen_counts(tmp_path: Path, own: str, mounted: str) -> None:
    cgroup_v2(tmp_path, {"memory.max": str(GB)}, own=own, mounted=mounted)
    assert [limit.limit_bytes for limit in memory_limits(tmp_path)] == [GB]


def test_of_a_unit_and_the_slices_above_it_each_counts(tmp_path: Path) -> None:
    files = {
        "system.slice/brigade.service/memory.max": "max",
        "system.slice/brigade.service/memory.high": str(3 * GB),
        "system.slice/brigade.service/cpu.max": "max 100000",
        "system.slice/memory.max": str(4 * GB),
        "system.slice/memory.current": str(2 * GB),
        "system.slice/cpu.max": "200000 100000",
        "other.slice/cpu.max": "10000 100000",
    }
    cgroup_v2(tmp_path, files, own="/system.slice/brigade.service")
    own, above = memory_limits(tmp_path)
    assert (own.limit_bytes, own.file.rpartition("/")[2]) == (3 * GB, "memory.high")
    assert (above.limit_bytes, above.free_bytes) == (4 * GB, 2 * GB)
    cpu = cpu_limit(tmp_path)
    assert cpu is not None
    assert cpu.n_cpus == 2.0


def test_more_used_than_is_allowed_leaves_nothing(tmp_path: Path) -> None:
    cgroup_v2(tmp_path, {"memory.max": "1000", "memory.current": "1700"})
    assert [limit.free_bytes for limit in memory_limits(tmp_path)] == [0]


def test_version_1_is_read_in_the_hierarchy_of_each_controller(tmp_path: Path) -> None:
    memory = {
        "docker/abc/memory.limit_in_bytes": str(2 * GB),
        "docker/abc/memory.usage_in_bytes": str(GB),
        "docker/abc/memory.stat": f"cache 1\ntotal_active_file {GB // 4}\ntotal_inactive_file {GB // 4}\n",
        "memory.limit_in_bytes": "9223372036854771712",
    }
    cpu = {"docker/abc/cpu.cfs_quota_us": "250000", "docker/abc/cpu.cfs_period_us": "100000"}
    cpu |= {"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"}
    cgroup_v1(tmp_path, memory, cpu, own="/docker/abc", mounted="/")
    (limit,) = memory_limits(tmp_path)
    assert (limit.limit_bytes, limit.free_bytes) == (2 * GB, 3 * GB // 2)
    found = cpu_limit(tmp_path)
    assert found is not None
    assert found.n_cpus == 2.5


def test_files_that_say_something_else_limit_nothing(tmp_path: Path) -> None:
    cgroup_v2(tmp_path, {"memory.max": "much", "cpu.max": "fast", "memory.current": ""})
    (tmp_path / "proc/self/mountinfo").write_text(
        "\nshort\n1 2 - cgroup2\n41 31 0:37 / /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n"
    )
    assert memory_limits(tmp_path) == ()
    assert cpu_limit(tmp_path) is None
