"""What `worker doctor` looks at: this machine, its way to the coordinator, and the way back. Changes nothing.

It works where a worker wouldn't: with a torch that can't be imported, a coordinator that is away, a full disk. The
checks go one after the other, each with its own deadline; their findings are values (`protocol.checks`).
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from protocol.checks import Check, Finding, broken, checked, doubtful, fine, in_thread, opened_mode, write_problem
from protocol.errors import BrigadeError
from protocol.file_locks import try_lock
from protocol.invites import Invite
from protocol.version import program_version
from protocol.weight_sizes import block_weight_bytes
from worker.cgroups import ROOT
from worker.doctor_network import Doorway, announced_urls, coordinator_checks, doorway_checks
from worker.hardware import Accelerator, installed_accelerator, unused_because
from worker.identity import load_identity
from worker.usable import UsableCpus, usable_cpus, usable_memory

if TYPE_CHECKING:  # torch may be missing here
    from worker.device import DeviceChoice, PrecisionChoice

_IMPORT_S = 60.0
"""For torch: from a cold disk it takes longer than anything else here."""
_LITTLE_MEMORY, _NO_MEMORY = 4 * 10**9, 10**9
_LITTLE_DISK, _NO_DISK = 10 * 10**9, 10**9
_WEIGHTS_SHARE = 0.7
"""Of the free memory: the rest is the worker's reserve and key-value caches."""
_CLOSE = "close other programs"
_INSTALL = "pip install '.[worker]' in Brigade's folder"


@dataclass(frozen=True, slots=True, kw_only=True)
class Patient:
    """The worker that would be started: what its options say, as far as they can be used."""

    coordinator_urls: tuple[str, ...]
    """None: those that are announced on the local network."""
    secret: Callable[[], str | Invite]
    """Raises what is wrong with it."""
    state: Path
    doorway: Doorway
    device: DeviceChoice = "auto"
    precision: PrecisionChoice = "auto"
    clock: Callable[[], float]
    """Seconds since 1970, UTC."""


async def examine(patient: Patient) -> list[Check]:
    """All checks, in the order in which a start would come upon what they look at."""
    state = patient.state
    checks = [
        await checked("versions", _versions, _INSTALL),
        await checked(
            "device", lambda: in_thread(lambda: device_finding(patient.device)), _INSTALL, deadline_s=_IMPORT_S
        ),
        await checked(
            "precision",
            lambda: in_thread(lambda: precision_finding(patient.device, patient.precision)),
            "say --precision auto, or name one that the device can do",
            deadline_s=_IMPORT_S,
        ),
        await checked("memory", lambda: in_thread(memory_finding), "close other programs, or use another machine"),
        await checked(
            "disk room", lambda: in_thread(lambda: disk_finding(state)), "name another folder: --state FOLDER"
        ),
        await checked(
            "state folder", lambda: in_thread(lambda: state_finding(state)), "name another folder: --state FOLDER"
        ),
    ]
    urls = patient.coordinator_urls
    if not urls:
        announced, urls = await announced_urls()
        checks.append(announced)
    checks += await doorway_checks(patient.doorway, urls)
    for url in urls:
        checks += await coordinator_checks(url.rstrip("/"), patient.secret, patient.clock)
    return checks


async def _versions() -> Finding:
    found = {"Python": platform.python_version(), "brigade": program_version()}
    missing = []
    for package in ("torch", "transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            missing.append(package)
    seen = ", ".join(f"{name} {number}" for name, number in found.items())
    if missing:
        return broken(f"{seen}; {' and '.join(missing)} not installed", _INSTALL)
    return fine(seen)


def device_finding(
    choice: DeviceChoice, look: Callable[[], Accelerator | None] = installed_accelerator, root: Path = ROOT
) -> Finding:
    """The device that a worker would take, and whether a better one is left unused. Imports torch."""
    try:
        from worker import device, kernels  # noqa: PLC0415 - that torch can't be loaded is one of the things to be found out
    except (ImportError, OSError) as exc:
        return broken(f"torch can't be loaded: {exc}", _INSTALL)
    unused = unused_because(look(), device.torch_build())
    chosen = device.find_device(choice)
    if unused is not None and choice == "auto":
        reason, mend = unused
        return doubtful(f"the worker would run on the CPU, MANY TIMES SLOWER than it could: {reason}", mend)
    free = device.device_memory(chosen, root).free_bytes
    seen = f"{chosen.type}, {_cpus_text(usable_cpus(root))}, {_gb(free)} of its memory free"
    if chosen.type == "cpu" and kernels.are_missing():
        return doubtful(f"{seen}; {kernels.MISSING}", kernels.MEND)
    return fine(seen)


def _cpus_text(cpus: UsableCpus) -> str:
    if cpus.limit is None:
        return f"{cpus.n_cpus} CPUs"
    return (
        f"{cpus.limit.n_cpus:.3g} of {cpus.n_cpus} CPUs ({cpus.limit.file} allows no more: "
        f"--threads {cpus.n_full_threads} is the default, {cpus.n_most_threads} the most)"
    )


def precision_finding(choice: DeviceChoice, precision: PrecisionChoice) -> Finding:
    """What weights would be held in, and who decides that. Imports torch.

    Raises:
        ConfigError: the device can't do it.
    """
    from worker import device  # noqa: PLC0415 - as above

    chosen = device.find_device(choice)
    precisions = device.usable_precisions(chosen)
    device.check_precision(precision, chosen.type, precisions)
    if precision != "auto":
        return fine(f"{precision}, whatever the models need: only --precision auto leaves room for less")
    full = " or ".join(p for p in precisions if p != "float16")
    fewer = " or ".join(device.usable_quantizations(precisions))
    if not fewer:
        return fine(f"auto: {full}; {chosen.type} can't do int8 or int4")
    return fine(
        f"auto: {full}, whichever is faster; where a model doesn't fit into the cluster's memory so, {fewer}, if "
        "the coordinator was started with --auto-quantize on, the default"
    )


def memory_finding(free_bytes: int | None = None, root: Path = ROOT) -> Finding:
    """Free main memory, and how large a part of a model that is enough for."""
    memory = usable_memory(root)
    free, limited = (memory.free_bytes, memory.free_from) if free_bytes is None else (free_bytes, None)
    full, least = (free * _WEIGHTS_SHARE / block_weight_bytes(10**9, held_as) for held_as in ("bfloat16", "int4"))
    within = f" (of {_gb(memory.total_bytes)}; {limited} allows no more)" if limited else ""
    seen = (
        f"{_gb(free)} free{within}: enough for about {full:.1f} billion parameters in bfloat16 and their caches, "
        f"or {least:.1f} in int4"
    )
    more = f"raise that limit (docker run --memory, MemoryMax=), or {_CLOSE}" if limited else _CLOSE
    if free < _NO_MEMORY:
        return broken(seen, f"{more}, or use a machine with more memory")
    if free < _LITTLE_MEMORY:
        return doubtful(seen, f"{more}; larger models need more workers")
    return fine(seen)


def disk_finding(state: Path, free_bytes: int | None = None) -> Finding:
    """Room for model files where the state folder is or would be."""
    folder = _nearest(state)
    free = shutil.disk_usage(folder).free if free_bytes is None else free_bytes
    seen = f"{_gb(free)} free for model files in {folder}"
    mend = "free some space, or name a folder on another disk: --state FOLDER"
    if free < _NO_DISK:
        return broken(seen, mend)
    return doubtful(seen, mend) if free < _LITTLE_DISK else fine(seen)


def state_finding(state: Path) -> Finding:
    """Whether the state folder can be used, and is private."""
    other = f"change its owner or permissions, or name another folder: --state FOLDER (now {state})"
    if not state.exists():
        parent = _nearest(state)
        if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
            return broken(f"{state} isn't there and can't be made in {parent}", other)
        return fine(f"{state} isn't there yet; the first start makes it")
    if problem := write_problem(state):
        return broken(problem, other)
    if mode := opened_mode(state):
        return doubtful(f"others may look into {state} (mode {mode:o})", f"chmod 700 {state}")
    return _identity_finding(state)


def _identity_finding(state: Path) -> Finding:
    key = state / "identity.key"
    if not key.exists():
        return fine(f"{state} can be written; it holds no key yet, the first start makes one")
    try:
        worker_id = load_identity(state).worker_id
    except BrigadeError as exc:
        return broken(exc.message, f"chmod 600 {key}, restore it from a backup, or remove it for a new identity")
    lock = state / "lock"
    held = try_lock(lock) if lock.exists() else None
    if held is not None:
        held.release()
    elif lock.exists():
        return fine(f"{worker_id}; a worker runs with it now")
    return fine(f"{worker_id}, private")


def _nearest(path: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    path = path.expanduser().absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def _gb(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:,.1f} GB"
