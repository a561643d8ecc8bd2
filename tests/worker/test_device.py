from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from typing import Literal

import pytest
import torch

from protocol.errors import ConfigError
from protocol.messages import Precision
from worker.device import (
    DeviceProfile,
    chosen_kv_precision,
    chosen_precision,
    chosen_quantization,
    device_memory,
    find_device,
    measure_device,
    usable_precisions,
)
from worker.device_speed import PrecisionSpeed

CPU = torch.device("cpu")
N_LOOKS = 4


def speed(prefill_flops_per_s: float, decode_bytes_per_s: float) -> PrecisionSpeed:
    return PrecisionSpeed(prefill_flops_per_s=prefill_flops_per_s, decode_bytes_per_s=decode_bytes_per_s)


def profile(**speeds: PrecisionSpeed) -> DeviceProfile:
    by_precision: dict[Precision, PrecisionSpeed] = speeds  # type: ignore[assignment]
    return DeviceProfile(
        device=CPU, name="cpu", n_threads=1, free_memory_bytes=1, memory_bytes_per_s=1.0, speeds=by_precision
    )


def test_the_machine_is_measured_quickly_and_plausibly() -> None:
    measured = measure_device(CPU)
    assert set(measured.speeds) == {"float32", "bfloat16"}
    assert measured.free_memory_bytes > 2**20
    assert 1e8 < measured.memory_bytes_per_s < 1e13
    for found in measured.speeds.values():
        assert 1e8 < found.prefill_flops_per_s < 1e15
        assert 1e7 < found.decode_bytes_per_s < 1e13
    assert chosen_precision("auto", measured) in measured.speeds


@pytest.mark.timeout(240)
def test_what_others_do_on_the_processor_hardly_slows_what_is_measured() -> None:
    """The best of a few looks: what takes memory's bandwidth for a while slows one thread's own time too."""
    alone = measure_device(CPU).speeds["float32"]
    # half of one thread's worth: several may be faster than one where they are alone
    enough, shares = 1 / torch.get_num_threads() / 2, [0.0]
    command = [sys.executable, "-c", "while True: pass"]
    others = [subprocess.Popen(command) for _ in range(3 * (os.cpu_count() or 1))]
    try:
        while max(shares) <= enough and len(shares) <= N_LOOKS:
            beside = measure_device(CPU).speeds["float32"]
            decode = beside.decode_bytes_per_s / alone.decode_bytes_per_s
            shares.append(min(decode, beside.prefill_flops_per_s / alone.prefill_flops_per_s))
    finally:
        for other in others:
            other.kill()
            other.wait()
    assert max(shares) > enough, shares


@pytest.mark.parametrize(
    ("bfloat16", "expected"),
    [
        (speed(2e11, 1e10), "bfloat16"),  # as fast by the byte: half the bytes a weight
        (speed(1e11, 4e9), "bfloat16"),  # a fifth slower by the weight, in half the memory
        (speed(1e11, 3e9), "float32"),  # emulated: clearly slower by the weight
        (speed(1e9, 6e9), "float32"),  # no matrix unit: prefill would take 100 times as long
    ],
)
def test_auto_takes_bfloat16_unless_float32_is_clearly_faster(bfloat16: PrecisionSpeed, expected: str) -> None:
    assert chosen_precision("auto", profile(float32=speed(1e11, 1e10), bfloat16=bfloat16)) == expected


@pytest.mark.parametrize("choice", ["int8", "int4"])
def test_fewer_bits_compute_in_bfloat16_where_the_device_can(
    choice: Literal["int8", "int4"], monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = profile(float32=speed(1e11, 1e10), bfloat16=speed(1.0, 1.0))
    assert chosen_precision(choice, cpu) == "bfloat16"
    assert chosen_quantization(choice) == choice
    assert chosen_quantization("auto") is None
    assert chosen_precision(choice, replace(cpu, device=torch.device("mps"))) == "bfloat16"
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda: False)
    old = replace(profile(float32=speed(1e11, 1e10), float16=speed(1.0, 1.0)), device=torch.device("cuda"))
    with pytest.raises(ConfigError, match=rf"--precision {choice} .*bfloat16.*float32, float16"):
        chosen_precision(choice, old)


def test_an_explicit_precision_is_taken_or_refused() -> None:
    slow = profile(float32=speed(1e11, 1e10), bfloat16=speed(1.0, 1.0))
    assert chosen_precision("bfloat16", slow) == "bfloat16"
    with pytest.raises(ConfigError, match="cpu can do float32, bfloat16"):
        chosen_precision("float16", slow)


def test_caches_are_of_the_precision_asked_for_or_of_what_is_computed_in() -> None:
    old = replace(profile(float32=speed(1e11, 1e10)), speeds={"float32": speed(1e11, 1e10)})
    assert [chosen_kv_precision("auto", old), chosen_kv_precision("int8", old)] == [None, "int8"]
    with pytest.raises(ConfigError, match="--kv-precision bfloat16: cpu can do float32; say int8"):
        chosen_kv_precision("bfloat16", old)


def test_auto_manages_without_bfloat16() -> None:
    old = replace(profile(float32=speed(1e11, 1e10)), speeds={"float32": speed(1e11, 1e10)})
    assert chosen_precision("auto", old) == "float32"


def test_the_cpu_is_there() -> None:
    assert find_device("cpu") == CPU
    assert usable_precisions(CPU) == ("float32", "bfloat16")
    assert device_memory(CPU).free_bytes > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="--device cuda"):
        find_device("cuda")


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="there is one here")
def test_an_apple_gpu_that_is_asked_for_elsewhere_is_said_to_be_one() -> None:
    with pytest.raises(ConfigError, match=r"finds no mps device here; that is the GPU of a Mac .*--device cpu"):
        find_device("mps")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_a_gpu_is_found_and_measured() -> None:
    device = find_device("auto")
    assert device.type == "cuda"
    assert measure_device(device).speeds["bfloat16"].prefill_flops_per_s > 1e12
