"""What the kernel's control groups leave this process: of a container, of a systemd unit. Linux; elsewhere nothing.

A container sees the memory and the processors of the whole machine; what it may use of them stands in files of its
cgroup and of those above it (v2, or v1 where that is mounted), and whoever takes more is ended (memory) or made to
wait (processors). What is found here is only what limits; `usable` puts it beside what the machine has.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

ROOT = Path("/")
_NO_LIMIT = 2**62
"""Version 1 has no word for none: it says the largest number of pages, in bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryLimit:
    """The memory that a cgroup may use."""

    limit_bytes: int
    free_bytes: int
    """Of it, now: pages of files count as free, as in the kernel's own `MemAvailable`."""
    file: str
    """Which says so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuLimit:
    """The processors that a cgroup may use, as time that it may use of them all."""

    n_cpus: float
    file: str
    """Which says so."""


def memory_limits(root: Path = ROOT) -> tuple[MemoryLimit, ...]:
    """Of this process's cgroup and of each above it that has one. `root` is where /proc and /sys are."""
    found = (_memory_v2(folder) for folder in _folders(root, "memory", "cgroup2"))
    older = (_memory_v1(folder) for folder in _folders(root, "memory", "cgroup"))
    return tuple(limit for limits in (found, older) for limit in limits if limit is not None)


def cpu_limit(root: Path = ROOT) -> CpuLimit | None:
    """The narrowest of this process's cgroup and those above it; None if none has one."""
    found = (_cpu_v2(folder) for folder in _folders(root, "cpu", "cgroup2"))
    older = (_cpu_v1(folder) for folder in _folders(root, "cpu", "cgroup"))
    limits = [limit for limits in (found, older) for limit in limits if limit is not None]
    return min(limits, key=lambda limit: limit.n_cpus, default=None)


def _folders(root: Path, controller: str, kind: str) -> Iterator[Path]:
    """This process's cgroup for `controller` in a hierarchy of `kind` (its file system), and those above it."""
    own = _own_path(root, controller if kind == "cgroup" else "")
    mount = _mount(root, kind, controller)
    if own is None or mount is None:
        return
    mounted, top = mount
    # a container that mounts its own cgroup alone, or looks from a namespace, sees it at the top
    below = own.relative_to(mounted) if own.is_relative_to(mounted) else PurePosixPath()
    parts = () if ".." in below.parts else below.parts
    for n_parts in range(len(parts), -1, -1):
        yield top.joinpath(*parts[:n_parts])


def _own_path(root: Path, controller: str) -> PurePosixPath | None:
    """Where this process is in the hierarchy of `controller` (v1), or in that without names (v2, "")."""
    for line in _lines(root / "proc/self/cgroup"):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controller in controllers.split(","):
            return PurePosixPath(path)
    return None


def _mount(root: Path, kind: str, controller: str) -> tuple[PurePosixPath, Path] | None:
    """Which part of the hierarchy is mounted, and where."""
    for line in _lines(root / "proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        of_mount, of_system = before.split(), after.split()
        if len(of_mount) < 5 or len(of_system) < 3 or of_system[0] != kind:
            continue
        if kind == "cgroup2" or controller in of_system[2].split(","):
            return PurePosixPath(of_mount[3]), root / of_mount[4].lstrip("/")
    return None


def _memory_v2(folder: Path) -> MemoryLimit | None:
    """Above `memory.high` a cgroup is slowed down, above `memory.max` it is ended: the lower one counts."""
    limits = [(n_bytes, name) for name in ("memory.max", "memory.high") if (n_bytes := _number(folder / name))]
    if not limits:
        return None
    n_bytes, name = min(limits)
    counts = _counts(folder / "memory.stat")
    files = sum(counts.get(name, 0) for name in ("active_file", "inactive_file", "slab_reclaimable"))
    return _memory(n_bytes, _number(folder / "memory.current") or 0, files, folder / name)


def _memory_v1(folder: Path) -> MemoryLimit | None:
    n_bytes = _number(folder / "memory.limit_in_bytes")
    if not n_bytes or n_bytes >= _NO_LIMIT:
        return None
    counts = _counts(folder / "memory.stat")
    files = sum(counts.get(name, 0) for name in ("total_active_file", "total_inactive_file"))
    used = _number(folder / "memory.usage_in_bytes") or 0
    return _memory(n_bytes, used, files, folder / "memory.limit_in_bytes")


def _memory(limit_bytes: int, used_bytes: int, n_file_bytes: int, file: Path) -> MemoryLimit:
    free = limit_bytes - max(0, used_bytes - n_file_bytes)
    return MemoryLimit(limit_bytes=limit_bytes, free_bytes=max(0, free), file=str(file))


def _cpu_v2(folder: Path) -> CpuLimit | None:
    for line in _lines(folder / "cpu.max"):  # "150000 100000", or "max 100000"
        quota, _, period = line.partition(" ")
        return _cpu(_as_number(quota), _as_number(period), folder / "cpu.max")
    return None


def _cpu_v1(folder: Path) -> CpuLimit | None:
    quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")  # -1: no limit
    return _cpu(quota, period, folder / "cpu.cfs_quota_us")


def _cpu(quota: int | None, period: int | None, file: Path) -> CpuLimit | None:
    return CpuLimit(n_cpus=quota / period, file=str(file)) if quota and period else None


def _counts(file: Path) -> dict[str, int]:
    words = (line.split() for line in _lines(file))
    return {pair[0]: int(pair[1]) for pair in words if len(pair) == 2 and pair[1].isdecimal()}


def _number(file: Path) -> int | None:
    """What stands in a file of one number; None if it isn't there, or says that there is no limit."""
    return next((_as_number(line) for line in _lines(file)), None)


def _as_number(text: str) -> int | None:
    return int(text) if text.isdecimal() else None


def _lines(file: Path) -> list[str]:
    """None where there is no such file, or it may not be read: then nobody says that there is a limit."""
    try:
        return file.read_text(errors="replace").splitlines()
    except OSError:
        return []
