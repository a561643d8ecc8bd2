"""Find the device, measure it, choose a precision. Never falls back to the CPU in silence."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import structlog
import torch

from protocol.errors import ConfigError
from protocol.messages import QUANTISED_PRECISION, KvPrecision, Precision, Quantization
from worker.cgroups import ROOT
from worker.device_speed import PrecisionSpeed, measured_memory, measured_speeds
from worker.hardware import Accelerator, TorchBuild, installed_accelerator, unused_because
from worker.usable import UsableMemory, usable_cpus, usable_memory

log = structlog.get_logger(__name__)

DeviceChoice = Literal["auto", "cpu", "cuda", "mps"]
PrecisionChoice = Literal["auto", "float32", "bfloat16", "float16", "int8", "int4"]
KvPrecisionChoice = Literal["auto", "bfloat16", "int8"]

_NEEDS = {
    "cuda": "install the torch build for it and its driver",
    "mps": "that is the GPU of a Mac with Apple silicon",
}
_CLEARLY = 1.3
"""Times as fast."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceProfile:
    """A device, measured."""

    device: torch.device
    name: str
    n_threads: int
    free_memory_bytes: int
    memory_bytes_per_s: float
    speeds: Mapping[Precision, PrecisionSpeed]
    """Of every precision that the device can do."""


def find_device(choice: DeviceChoice) -> torch.device:
    """The device that was asked for; `auto` prefers CUDA, then MPS, then the CPU.

    Raises:
        ConfigError: the device that was asked for isn't there.
    """
    has_cuda, has_mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if (choice == "cuda" and not has_cuda) or (choice == "mps" and not has_mps):
        raise ConfigError(
            f"--device {choice}: torch {torch.__version__} finds no {choice} device here; {_NEEDS[choice]}, or say "
            "--device cpu"
        )
    if choice != "auto":
        return torch.device(choice)
    if has_cuda:
        return torch.device("cuda")
    if has_mps:
        return torch.device("mps")
    return torch.device("cpu")


def torch_build() -> TorchBuild:
    """What the installed torch can use."""
    return TorchBuild(
        version=str(torch.__version__),
        cuda_version=torch.version.cuda,
        has_cuda=torch.cuda.is_available(),
        has_mps=torch.backends.mps.is_available(),
        rocm_version=torch.version.hip,
    )


def unused_accelerator(
    choice: DeviceChoice, look: Callable[[], Accelerator | None] = installed_accelerator
) -> tuple[str, str] | None:
    """Why `auto` leaves an accelerator here unused, and the mend; None if it doesn't. May take seconds."""
    unused = unused_because(look(), torch_build()) if choice == "auto" else None
    if unused is not None:
        log.warning("accelerator_unused", reason=unused[0], mend=unused[1])
    return unused


def measure_device(device: torch.device, root: Path = ROOT) -> DeviceProfile:
    """Measure memory and matrix products: in two seconds, in ten on a busy machine. Blocks: call it in a thread."""
    share = usable_cpus(root).share(torch.get_num_threads()) if device.type == "cpu" else 1.0
    return DeviceProfile(
        device=device,
        name=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        n_threads=torch.get_num_threads(),
        free_memory_bytes=device_memory(device, root).free_bytes,
        memory_bytes_per_s=measured_memory(device) * share,
        speeds={
            precision: speed.slowed(share)
            for precision, speed in measured_speeds(device, usable_precisions(device)).items()
        },
    )


def usable_precisions(device: torch.device) -> tuple[Precision, ...]:
    """The precisions that the device can do."""
    if device.type == "cpu":
        return ("float32", "bfloat16")
    if device.type == "cuda" and not torch.cuda.is_bf16_supported():
        return ("float32", "float16")
    return ("float32", "bfloat16", "float16")


def usable_quantizations(precisions: Collection[Precision]) -> tuple[Quantization, ...]:
    """In which fewer bits a device can hold weights that can compute in these precisions."""
    return ("int8", "int4") if QUANTISED_PRECISION in precisions else ()


def check_precision(choice: PrecisionChoice, name: str, precisions: Collection[Precision]) -> None:
    """Refuse what a device of this name, which can compute in `precisions`, can't do.

    Raises:
        ConfigError: with what it can.
    """
    possible = (*precisions, *usable_quantizations(precisions))
    if choice == "auto" or choice in possible:
        return
    why = f" computes in {QUANTISED_PRECISION}" if chosen_quantization(choice) is not None else ""
    raise ConfigError(
        f"--precision {choice}{why}: {name} can do {', '.join(possible)}; say one of these or auto, or name "
        "another --device"
    )


def chosen_precision(choice: PrecisionChoice, profile: DeviceProfile) -> Precision:
    """The precision asked for; with `auto` bfloat16, unless float32 was measured to be clearly faster.

    bfloat16 takes half the memory, and a choice between equals mustn't change from one start to the next. Faster is
    what takes less time for a typical answer: its decode steps count four times its prefill.

    With int8 and int4 it is what they compute in; here they have to be asked for, since only the coordinator knows
    whether a model fits otherwise.

    Raises:
        ConfigError: the device can't do the one that was asked for.
    """
    check_precision(choice, profile.name, profile.speeds)
    if choice == "int8" or choice == "int4":
        return QUANTISED_PRECISION
    if choice == "auto":
        if "bfloat16" not in profile.speeds:
            return "float32"
        full, half = profile.speeds["float32"], profile.speeds["bfloat16"]
        is_clear = _relative_time("bfloat16", half, full) > _CLEARLY * _relative_time("float32", full, full)
        return "float32" if is_clear else "bfloat16"
    return choice


def chosen_quantization(choice: PrecisionChoice) -> Quantization | None:
    """What weights are held in, if not in the precision that is computed in."""
    return choice if choice == "int8" or choice == "int4" else None


def chosen_kv_precision(choice: KvPrecisionChoice, profile: DeviceProfile) -> KvPrecision | None:
    """What keys and values are kept in; None: what is computed in.

    Raises:
        ConfigError: the device can't do the one that was asked for.
    """
    if choice == "bfloat16" and "bfloat16" not in profile.speeds:
        raise ConfigError(
            f"--kv-precision bfloat16: {profile.name} can do {', '.join(profile.speeds)}; say int8, which takes "
            "half of what bfloat16 takes, or auto"
        )
    return None if choice == "auto" else choice


def device_memory(device: torch.device, root: Path = ROOT) -> UsableMemory:
    """The device's memory, as far as this process may use it. MPS shares the machine's."""
    if device.type != "cuda":
        return usable_memory(root)
    free, total = torch.cuda.mem_get_info(device)
    return UsableMemory(total_bytes=total, free_bytes=free)


def _relative_time(precision: Precision, speed: PrecisionSpeed, reference: PrecisionSpeed) -> float:
    prefill = reference.prefill_flops_per_s / speed.prefill_flops_per_s
    decode = reference.decode_elements_per_s("float32") / speed.decode_elements_per_s(precision)
    return prefill + 4 * decode
