"""The device that a worker uses, and what its memory is for: weights, caches, a model that drafts."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from protocol.control_messages import DeviceReport
from protocol.errors import ConfigError
from protocol.messages import KvPrecision, Precision, Quantization
from worker import duties
from worker.byte_sizes import size_text
from worker.config import WorkerConfig
from worker.device import (
    DeviceProfile,
    chosen_kv_precision,
    chosen_precision,
    chosen_quantization,
    find_device,
    measure_device,
    total_memory_bytes,
    usable_quantizations,
)
from worker.draft_model import DraftModelRequest
from worker.draft_size import expected_bytes
from worker.duties import KeeperLimits
from worker.engine import Engine
from worker.quantised_cache import QuantisedCache


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


def measured(config: WorkerConfig) -> Machine:
    """Find and measure the device. Blocks, for most of a second.

    Raises:
        ConfigError: the device isn't there, or can't do what it is to do; the message says what it can.
    """
    device = find_device(config.device)
    if config.n_threads is not None:
        _check_threads(config.n_threads)
        torch.set_num_threads(config.n_threads)  # this thread's: the engine's sets its own
    profile = measure_device(device)
    if config.memory_bytes is not None:
        _check_memory(config.memory_bytes, profile)
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
        n_threads=config.n_threads,
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


def _check_threads(n_threads: int) -> None:
    """Refuse threads that only wait for each other: thousands of them stop a machine for minutes."""
    n_cpus = os.cpu_count() or 1
    if n_threads > n_cpus:
        raise ConfigError(
            f"--threads {n_threads}: this machine has {n_cpus} CPUs, and more threads than that only wait for each "
            f"other; say 1 to {n_cpus}, or leave it out"
        )


def _check_memory(memory_bytes: int, profile: DeviceProfile) -> None:
    """Refuse memory that isn't there: blocks would be given to this worker by it, and the system would end it."""
    has = total_memory_bytes(profile.device)
    if memory_bytes > has:
        raise ConfigError(
            f"--memory of {size_text(memory_bytes)}: {profile.name} has {size_text(has)} in all, and "
            f"{size_text(profile.free_memory_bytes)} are free; say less, or leave it out"
        )


def _check_cache_memory(kv_memory_bytes: int | None, memory_bytes: int, which: str) -> None:
    """Refuse caches that take all of the memory; `which` says what memory that is."""
    if kv_memory_bytes is not None and kv_memory_bytes >= memory_bytes:
        raise ConfigError(
            f"--kv-memory of {size_text(kv_memory_bytes)} leaves nothing for weights of the "
            f"{size_text(memory_bytes)} that {which}: say less, or more with --memory"
        )
