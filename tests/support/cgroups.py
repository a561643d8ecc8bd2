"""Roots in which control groups are as a test says: their files below /proc and /sys, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

GB = 10**9


def cgroup_v2(
    root: Path,
    files: Mapping[str, str],
    *,
    own: str = "/",
    mounted: str = "/",
) -> Path:
    """A process in the cgroup `own` of version 2, of whose hierarchy `mounted` is seen at /sys/fs/cgroup."""
    _write(root / "proc/self/cgroup", f"0::{own}\n")
    _write(root / "proc/self/mountinfo", f"41 31 0:37 {mounted} /sys/fs/cgroup ro,nosuid - cgroup2 cgroup2 rw\n")
    _write_all(root / "sys/fs/cgroup", files)
    return root


def cgroup_v1(root: Path, memory: Mapping[str, str], cpu: Mapping[str, str], *, own: str, mounted: str) -> Path:
    """A process in the cgroup `own` of version 1, in a hierarchy each for memory and processors."""
    _write(root / "proc/self/cgroup", f"4:memory:{own}\n3:cpu,cpuacct:{own}\n0::/\n")
    _write(
        root / "proc/self/mountinfo",
        f"35 31 0:32 {mounted} /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory\n"
        f"32 31 0:29 {mounted} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
        "41 31 0:37 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
    )
    _write_all(root / "sys/fs/cgroup/memory", memory)
    _write_all(root / "sys/fs/cgroup/cpu,cpuacct", cpu)
    return root


def _write_all(folder: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        _write(folder / name, f"{text}\n")


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
