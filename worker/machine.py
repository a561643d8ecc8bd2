"""The device that a worker uses, and what its memory is for: weights, caches, a model that drafts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from protocol.control_messages import DeviceReport
from protocol.errors import ConfigError
from protocol.messages import KvPrecision, Precision, Quantization
from worker import duties
from worker.byte_sizes import size_text
from worker.cgroups import ROOT
from worker.config import WorkerConfig
from worker.device import (
    DeviceProfile,
    chosen_kv_precision,
    chosen_precision,
    chosen_quantization,
    device_memory,
    find_device,
    measure_device,
    usable_quantizations,
)
from worker.draft_model import DraftModelRequest
from worker.draft_size import expected_bytes
from worker.duties import KeeperLimits
from worker.engine import Engine
from worker.quantised_cache import QuantisedCache
from worker.usable import UsableCpus, usable_cpus


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The device, and what of it the worker uses."""

    profile: DeviceProfile
    precision: Precision
    memory_bytes: int
    quantization: Quantization | None = None
    is_precision_open: bool = False
    """Whether the coordinator may choose fewer bits."""
    kv_precision: KvPrecision | None = None
    """What keys and values are kept in, if not in what is computed in."""
    draft_bytes: int = 0
    """What a draft model takes, or is expected to, beside `memory_bytes`."""

    def report(self) -> DeviceReport:
        """What the coordinator is told of it."""
        speed = self.profile.speeds[self.precision]
        return DeviceReport(
            device=str(self.profile.device),
            precision=self.precision,
            n_threads=self.profile.n_threads,
            memory_bytes=self.memory_bytes,
            bandwidth_bytes_per_s=speed.decode_bytes_per_s,
            flops_per_s=speed.prefill_flops_per_s,
            quantization=self.quantization,
            quantizations=usable_quantizations(self.profile.speeds),
            is_precision_open=self.is_precision_open,
            kv_precision=self.kv_precision,
            runs_encoders=True,
        )


def measured(config: WorkerConfig, root: Path = ROOT) -> Machine:
    """Find and measure the device, within what a container leaves. Blocks, for most of a second.

    `root` is where /proc and /sys of cgroups are.

    Raises:
        ConfigError: the device isn't there, or can't do what it is to do; the message says what it can.
    """
    device = find_device(config.device)
    n_threads = _n_threads(config.n_threads, usable_cpus(root))
    torch.set_num_threads(n_threads)  # this thread's: the engine's sets its own
    profile = measure_device(device, root)
    if config.memory_bytes is not None:
        _check_memory(config.memory_bytes, profile, root)
    memory = config.memory_bytes or duties.default_memory_bytes(profile.free_memory_bytes)
    _check_cache_memory(config.kv_memory_bytes, memory, "can be used")
    return Machine(
        profile=profile,
        precision=chosen_precision(config.precision, profile),
        memory_bytes=memory,
        quantization=chosen_quantization(config.precision),
        is_precision_open=config.precision == "auto",
        kv_precision=chosen_kv_precision(config.kv_precision, profile),
    )


def engine_on(config: WorkerConfig, machine: Machine, quantised: QuantisedCache) -> Engine:
    """The engine, its caches being given what nothing else takes yet."""
    kv_bytes = duties.kv_budget_bytes(machine.memory_bytes, 0, config.kv_memory_bytes)
    return Engine(
        device=machine.profile.device,
        kv_budget_bytes=kv_bytes,
        n_threads=machine.profile.n_threads,
        kv_precision=machine.kv_precision,
        quantised=quantised,
    )


def before_draft_model(config: WorkerConfig, machine: Machine) -> Machine:
    """The machine with the memory that the draft model is expected to leave. Blocks: it looks at its files.

    Raises:
        ConfigError: it can't be used, or leaves nothing for weights.
    """
    if config.draft_model is None:
        return machine
    n_bytes = expected_bytes(_draft_request(config.draft_model, machine))
    return _with_draft_model(config, machine, n_bytes)


async def beside_draft_model(
    config: WorkerConfig, machine: Machine, engine: Engine, tell: Callable[[str], None]
) -> Machine:
    """The machine with the memory that the draft model leaves, once that is loaded.

    Raises:
        ConfigError: it can't be used, or leaves nothing for weights.
    """
    if config.draft_model is None:
        return machine
    model = await engine.drafter.load(_draft_request(config.draft_model, machine))
    left = _with_draft_model(config, machine, model.n_bytes)
    engine.resize_kv_budget(duties.kv_budget_bytes(left.memory_bytes, 0, config.kv_memory_bytes))
    tell(
        f"drafts with {model.name} where that pays: {size_text(model.n_bytes)}, "
        f"{1000 * model.times.guess_s:.1f} ms a guess"
    )
    return left


def _draft_request(path: Path, machine: Machine) -> DraftModelRequest:
    return DraftModelRequest(path=path, precision=machine.precision, quantization=machine.quantization)


def _with_draft_model(config: WorkerConfig, machine: Machine, n_bytes: int) -> Machine:
    left = machine.memory_bytes - n_bytes
    if left <= 0:
        raise ConfigError(
            f"--draft-model {config.draft_model} takes {size_text(n_bytes)}, caches included, of "
            f"{size_text(machine.memory_bytes)}: name a smaller one, or give more with --memory"
        )
    _check_cache_memory(config.kv_memory_bytes, left, "the draft model leaves")
    return replace(machine, memory_bytes=left, draft_bytes=n_bytes)


def keeper_limits(config: WorkerConfig, machine: Machine) -> KeeperLimits:
    """What the keeper may put into the machine."""
    return KeeperLimits(
        precision=machine.precision,
        memory_bytes=machine.memory_bytes,
        kv_memory_bytes=config.kv_memory_bytes,
        drain_s=config.drain_s,
        quantization=machine.quantization,
        draft_bytes=machine.draft_bytes,
    )


def _n_threads(given: int | None, cpus: UsableCpus) -> int:
    """Those given, or torch's own number where a container may use so many.

    Threads that only wait for each other are refused: thousands of them stop a machine for minutes.
    """
    if given is None:
        return min(torch.get_num_threads(), cpus.n_full_threads)
    n_most = cpus.n_most_threads
    if given > n_most:
        has = f"this machine has {cpus.n_cpus} CPUs"
        if cpus.limit is not None:
            has = f"{cpus.limit.file} allows {cpus.limit.n_cpus:.3g} of {cpus.n_cpus} CPUs"
        raise ConfigError(
            f"--threads {given}: {has}, and more threads than that only wait for each other; "
            f"say 1 to {n_most}, or leave it out"
        )
    return given


def _check_memory(memory_bytes: int, profile: DeviceProfile, root: Path) -> None:
    """Refuse memory that isn't there: blocks would be given to this worker by it, and the system would end it."""
    memory = device_memory(profile.device, root)
    if memory_bytes > memory.total_bytes:
        has = f"{profile.name} has" if memory.total_from is None else f"{memory.total_from} allows"
        raise ConfigError(
            f"--memory of {size_text(memory_bytes)}: {has} {size_text(memory.total_bytes)} in all, and "
            f"{size_text(profile.free_memory_bytes)} are free; say less, or leave it out"
        )


def _check_cache_memory(kv_memory_bytes: int | None, memory_bytes: int, which: str) -> None:
    """Refuse caches that take all of the memory; `which` says what memory that is."""
    if kv_memory_bytes is not None and kv_memory_bytes >= memory_bytes:
        raise ConfigError(
            f"--kv-memory of {size_text(kv_memory_bytes)} leaves nothing for weights of the "
            f"{size_text(memory_bytes)} that {which}: say less, or more with --memory"
        )
