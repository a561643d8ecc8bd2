"""How far honest workers differ on a real model, SmolLM2-135M: tiny random ones have no massive activations.

A few tokens of a real text get activations a thousand times as large as all others (Sun et al. 2024, arXiv
2402.17762). Whether one near the beginning does may hang on a rounding, and then its states have little in common.
Float16 isn't among the precisions: most processors compute it too slowly for so many probes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.audit_alarms import BFLOAT16, FLOAT16, PAIRS, SLOW, Alarms, Cell, Machine, audit_range
from benchmarks.perplexity import Arrangement, PackedModel
from protocol.ids import BlockRange
from worker.stage import Stage

RANGES = (BlockRange(0, 30), BlockRange(0, 10), BlockRange(10, 20), BlockRange(20, 30))


def measured(n_inputs: int) -> Alarms:
    """So many inputs in each of a few ranges."""
    alarms = Alarms()
    with tempfile.TemporaryDirectory(prefix="brigade-audits-") as scratch:
        whole = dict(_stages(PackedModel(Path(scratch))))
    for blocks in RANGES:
        stages = {machine: stage.view(blocks) for machine, stage in whole.items()}
        audit_range(alarms, Cell("smollm2", 0, blocks, 0), "LlamaForCausalLM", stages, n_inputs)
    return alarms


def _stages(model: PackedModel) -> Iterator[tuple[Machine, Stage]]:
    for machine in dict.fromkeys(machine for pair in PAIRS for machine in pair):
        if machine.dtype in (*SLOW, FLOAT16.dtype) or machine.rounded is FLOAT16.dtype:
            continue
        arrangement = Arrangement(name="", dtype=machine.dtype, quantization=machine.codes)
        stage = model.stage(arrangement)
        if machine.rounded is BFLOAT16.dtype:
            _round(stage, machine.rounded)
        yield machine, stage


@torch.no_grad()
def _round(stage: Stage, to: torch.dtype) -> None:
    for parameter in stage._model.parameters():  # noqa: SLF001 - a stage has no other way
        parameter.copy_(parameter.to(to))
