"""How far honest workers differ on a real model, SmolLM2-135M: tiny random ones have no massive activations.

A few tokens of a real text get activations a thousand times as large as all others (Sun et al. 2024, arXiv
2402.17762). Whether one near the beginning does may hang on a rounding, and then its states have little in common.
Float16 is computed as accelerators do, since most processors are too slow for so many probes: sums in float32, and
what each layer hands on rounded. The file has weights of 4 bits, and its codes fit into 8: int8 of these is what a
worker makes of this file. Rounded anew (`is_anew`), the file's values are taken as the full-precision weights of a
safetensors checkpoint, which a worker of `--precision int8` rounds itself when it loads them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.audit_alarms import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    INT8,
    PAIRS,
    SLOW,
    Alarms,
    Cell,
    Machine,
    audit_range,
)
from benchmarks.perplexity import Arrangement, PackedModel
from protocol.ids import BlockRange
from worker.stage import Stage

ANEW = (FLOAT32, BFLOAT16, INT8)
"""What is measured of weights that are rounded anew: all else is as it is without."""
RANGES = (BlockRange(0, 30), BlockRange(0, 10), BlockRange(10, 20), BlockRange(20, 30))


def measured(n_inputs: int, *, is_anew: bool = False) -> Alarms:
    """So many inputs in each of a few ranges; where `is_anew` of int8 beside float32 and bfloat16 alone."""
    alarms = Alarms()
    with tempfile.TemporaryDirectory(prefix="brigade-audits-") as scratch:
        whole = dict(_stages(PackedModel(Path(scratch)), is_anew=is_anew))
    for blocks in RANGES:
        stages = {machine: stage.view(blocks) for machine, stage in whole.items()}
        audit_range(alarms, Cell("smollm2", 0, blocks, 0), "LlamaForCausalLM", stages, n_inputs)
    return alarms


def _stages(model: PackedModel, *, is_anew: bool) -> Iterator[tuple[Machine, Stage]]:
    for machine in ANEW if is_anew else dict.fromkeys(machine for pair in PAIRS for machine in pair):
        if machine.dtype in SLOW:
            continue
        is_half = machine == FLOAT16
        dtype = torch.float32 if is_half else machine.dtype
        stage = model.stage(Arrangement(name="", dtype=dtype, quantization=machine.codes, is_rounded_anew=is_anew))
        if is_half or machine.rounded is not None:
            _round(stage, machine.rounded or FLOAT16.dtype)
        if is_half:
            _round_outputs(stage, FLOAT16.dtype)
        yield machine, stage


@torch.no_grad()
def _round(stage: Stage, to: torch.dtype) -> None:
    for parameter in stage._model.parameters():  # noqa: SLF001 - a stage has no other way
        parameter.copy_(parameter.to(to))


def _round_outputs(stage: Stage, to: torch.dtype) -> None:
    """Have each layer of the model, and each block, hand on what `to` holds."""

    def rounded(_module: Any, _args: Any, output: Any) -> Any:
        return output.to(to).to(output.dtype) if isinstance(output, torch.Tensor) else output

    for module in stage._model.modules():  # noqa: SLF001
        if not list(module.children()) or "DecoderLayer" in type(module).__name__:
            module.register_forward_hook(rounded)
