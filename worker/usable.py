"""What of this machine's memory and processors this process may use: all, or less in a container."""

from __future__ import annotations

import os
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import psutil

from worker.cgroups import ROOT, CpuLimit, cpu_limit, memory_limits


@dataclass(frozen=True, slots=True, kw_only=True)
class UsableMemory:
    """Main memory: the machine's, or the least that a cgroup leaves of it."""

    total_bytes: int
    free_bytes: int
    total_from: str | None = None
    """The file that allows no more in all; None: the machine has no more."""
    free_from: str | None = None
    """The file that leaves no more free; None: the machine has no more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UsableCpus:
    """Processors: those that this process may run on, and how much of them it may use."""

    n_cpus: int
    limit: CpuLimit | None = None
    """What allows less than all of them; None: nothing does."""

    @property
    def n_most_threads(self) -> int:
        """More would only wait for each other."""
        return self.n_cpus if self.limit is None else ceil(self.limit.n_cpus)

    @property
    def n_full_threads(self) -> int:
        """So many are never made to wait; one that is keeps all others waiting for its part of a product."""
        return self.n_cpus if self.limit is None else max(1, int(self.limit.n_cpus))

    def share(self, n_threads: int) -> float:
        """How much of the time so many busy threads may run: measurements are too short to see that they wait."""
        return 1.0 if self.limit is None else min(1.0, self.limit.n_cpus / n_threads)


def usable_memory(root: Path = ROOT) -> UsableMemory:
    """What there is, and what is free of it now. `root` is where /proc and /sys of cgroups are."""
    machine, limits = psutil.virtual_memory(), memory_limits(root)
    total = (int(machine.total), None), *((limit.limit_bytes, limit.file) for limit in limits)
    free = (int(machine.available), None), *((limit.free_bytes, limit.file) for limit in limits)
    total_bytes, total_from = min(total, key=_size)
    free_bytes, free_from = min(free, key=_size)
    return UsableMemory(total_bytes=total_bytes, free_bytes=free_bytes, total_from=total_from, free_from=free_from)


def _size(one: tuple[int, str | None]) -> int:
    return one[0]


def usable_cpus(root: Path = ROOT) -> UsableCpus:
    """Those of this process. `root` is where /proc and /sys of cgroups are."""
    n_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = cpu_limit(root)
    return UsableCpus(n_cpus=n_cpus, limit=limit if limit is not None and limit.n_cpus < n_cpus else None)
