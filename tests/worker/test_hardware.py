from __future__ import annotations

from pathlib import Path

import pytest

from worker.hardware import Accelerator, TorchBuild, installed_accelerator, unused_because

GPU = Accelerator(kind="cuda", name="NVIDIA H100")
AMD = Accelerator(kind="rocm", name="AMD GPU with 24 GiB")
MAC = Accelerator(kind="mps", name="Apple GPU")


def build(
    *, cuda: str | None = None, rocm: str | None = None, has_cuda: bool = False, has_mps: bool = False
) -> TorchBuild:
    return TorchBuild(version="2.9.0", cuda_version=cuda, rocm_version=rocm, has_cuda=has_cuda, has_mps=has_mps)


def test_no_tool_and_no_files_of_the_driver_mean_no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert installed_accelerator((str(tmp_path / "none"),), ("Linux", "x86_64"), tmp_path) is None


def test_the_driver_s_files_show_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "nvidia0").touch()
    found = installed_accelerator((str(tmp_path / "nvidia0"),), ("Linux", "x86_64"))
    assert found == Accelerator(kind="cuda", name="NVIDIA GPU")


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo 'NVIDIA H100'", GPU),
        ("echo 'NVIDIA-SMI has failed'; exit 9", None),
        ("exit 0", None),
    ],
)
def test_the_driver_s_tool_is_asked_for_the_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, expected: Accelerator | None
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert installed_accelerator((), ("Linux", "x86_64"), tmp_path) == expected


@pytest.mark.parametrize(
    ("vendor", "memory", "expected"),
    [
        ("0x1002", str(24 * 2**30), AMD),
        ("0x1002", str(2**30), None),
        ("0x1002", None, None),
        ("0x8086", str(24 * 2**30), None),
    ],
    ids=["a card", "graphics of a processor", "another driver", "another maker"],
)
def test_a_card_by_amd_is_known_by_its_maker_and_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, vendor: str, memory: str | None, expected: Accelerator | None
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "card0-HDMI-A-1").mkdir()
    device = tmp_path / "card0" / "device"
    device.mkdir(parents=True)
    (device / "vendor").write_text(f"{vendor}\n")
    if memory is not None:
        (device / "mem_info_vram_total").write_text(f"{memory}\n")
    assert installed_accelerator((), ("Linux", "x86_64"), tmp_path) == expected


def test_an_apple_machine_has_its_own() -> None:
    assert installed_accelerator((), ("Darwin", "arm64")) == MAC


@pytest.mark.parametrize(
    ("accelerator", "torch"),
    [
        (None, build()),
        (GPU, build(cuda="12.8", has_cuda=True)),
        (AMD, build(rocm="6.4", has_cuda=True)),
        (MAC, build(has_mps=True)),
    ],
)
def test_what_is_used_or_not_there_is_no_cause_for_a_warning(
    accelerator: Accelerator | None, torch: TorchBuild
) -> None:
    assert unused_because(accelerator, torch) is None


@pytest.mark.parametrize(
    ("accelerator", "torch", "why", "mend"),
    [
        (
            GPU,
            build(),
            "NVIDIA H100, but torch 2.9.0 is a build without CUDA",
            "pip install --force-reinstall torch==2.9.0 --index-url https://download.pytorch.org/whl/cu130 ",
        ),
        (GPU, build(cuda="12.8"), "for CUDA 12.8", "nvidia-smi"),
        (AMD, build(cuda="12.8"), "AMD GPU with 24 GiB, but torch 2.9.0 is a build without ROCm", "build for ROCm"),
        (AMD, build(rocm="6.4"), "for ROCm 6.4", "groups render and video"),
        (MAC, build(), "Apple GPU", "arm64"),
    ],
)
def test_what_is_left_unused_is_named_with_its_mend(
    accelerator: Accelerator, torch: TorchBuild, why: str, mend: str
) -> None:
    unused = unused_because(accelerator, torch)
    assert unused is not None
    assert why in unused[0]
    assert mend in unused[1]
