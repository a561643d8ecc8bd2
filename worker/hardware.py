"""Which accelerators this machine has, whether or not torch can use them. Knows no torch."""

from __future__ import annotations

import platform
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

_NVIDIA_FILES = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/dxg", "/proc/driver/nvidia/version")
_NVIDIA_SMI_S = 3.0
_CUDA_INDEX = "https://download.pytorch.org/whl/cu130"
"""torch's builds for CUDA 13.0: of 2.9 and all that came since. Those for 12.8 ended with 2.11."""
_OLD_CUDA_INDEX = "https://download.pytorch.org/whl/cu126"
"""For GPUs before Turing and drivers before 580, which CUDA 13 knows no more; up to torch 2.14."""
_ROCM_TORCH = "torch's build for ROCm (pytorch.org/get-started/locally); Brigade hasn't been tried on it"
_AMD_VENDOR = "0x1002"
_AMD_LEAST_BYTES = 4 * 2**30
"""Graphics of a processor, for which there is no ROCm, mostly have less memory of their own."""
_MAC_TORCH = "pip install --force-reinstall torch, with an arm64 Python"


@dataclass(frozen=True, slots=True, kw_only=True)
class Accelerator:
    """A device that this machine has."""

    kind: Literal["cuda", "rocm", "mps"]
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchBuild:
    """What the installed torch can use."""

    version: str
    cuda_version: str | None
    """That it was built for; None: not built for CUDA."""
    has_cuda: bool
    """Whether it finds a device of the kind that it was built for, CUDA or ROCm."""
    has_mps: bool
    rocm_version: str | None = None
    """That it was built for; None: not built for ROCm."""


def installed_accelerator(
    files: tuple[str, ...] = _NVIDIA_FILES,
    machine: tuple[str, str] | None = None,
    cards: Path = Path("/sys/class/drm"),
) -> Accelerator | None:
    """The accelerator of this machine; None if there is none that Brigade knows. Blocks, for seconds at most."""
    if (machine or (platform.system(), platform.machine())) == ("Darwin", "arm64"):
        return Accelerator(kind="mps", name="Apple GPU")
    if any(Path(file).exists() for file in files):
        return Accelerator(kind="cuda", name=_nvidia_name() or "NVIDIA GPU")
    name = _nvidia_name()
    if name is not None:
        return Accelerator(kind="cuda", name=name)
    n_bytes = _amd_memory_bytes(cards)
    if n_bytes < _AMD_LEAST_BYTES:
        return None
    return Accelerator(kind="rocm", name=f"AMD GPU with {n_bytes / 2**30:.0f} GiB")


def unused_because(accelerator: Accelerator | None, torch: TorchBuild) -> tuple[str, str] | None:
    """Why torch doesn't use the accelerator, and the mend; None if it does, or there is none."""
    if accelerator is None:
        return None
    if accelerator.kind == "mps":
        if torch.has_mps:
            return None
        return f"this machine has an {accelerator.name}, but torch {torch.version} can't use it", _MAC_TORCH
    if torch.has_cuda:
        return None
    if accelerator.kind == "rocm":
        return _unused_amd(accelerator, torch)
    if torch.cuda_version is None:
        return (
            f"this machine has an {accelerator.name}, but torch {torch.version} is a build without CUDA",
            _cuda_torch(torch),
        )
    built = f"torch {torch.version} (for CUDA {torch.cuda_version})"
    return (
        f"this machine has an {accelerator.name}, but {built} can't use it",
        "see that `nvidia-smi` works, that its CUDA version isn't older than torch's, and that "
        f"CUDA_VISIBLE_DEVICES isn't empty; else {_cuda_torch(torch)}",
    )


def _cuda_torch(torch: TorchBuild) -> str:
    """How to install the same version of torch as a build for CUDA."""
    version = torch.version.partition("+")[0]
    return (
        f"pip install --force-reinstall torch=={version} --index-url {_CUDA_INDEX} ({_OLD_CUDA_INDEX} for a GPU "
        "older than the RTX 20 series or a driver older than 580)"
    )


def _unused_amd(accelerator: Accelerator, torch: TorchBuild) -> tuple[str, str]:
    has = f"this machine has an {accelerator.name}, but torch {torch.version}"
    if torch.rocm_version is None:
        return f"{has} is a build without ROCm", f"install {_ROCM_TORCH}"
    return (
        f"{has} (for ROCm {torch.rocm_version}) can't use it",
        "see that `rocminfo` works and that this user may open /dev/kfd (groups render and video); else install "
        f"another of {_ROCM_TORCH}",
    )


def _amd_memory_bytes(cards: Path) -> int:
    """The memory of its own that the largest AMD GPU has, as Linux's driver says it; 0 if there is none."""
    sizes = [0]
    for device in cards.glob("card*/device"):
        try:
            if (device / "vendor").read_text().strip() == _AMD_VENDOR:
                sizes.append(int((device / "mem_info_vram_total").read_text()))
        except (OSError, ValueError):  # a card without memory of its own, or another driver
            continue
    return max(sizes)


def _nvidia_name() -> str | None:
    """The first GPU's name as the driver's own tool says it; None if that isn't there or knows none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    try:
        done = subprocess.run(  # noqa: S603 - a fixed command
            [program, "--query-gpu=name", "--format=csv,noheader"],
            capture_output=True,
            timeout=_NVIDIA_SMI_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.decode(errors="replace").splitlines()
    return lines[0][:100] if done.returncode == 0 and lines else None
