"""How far honest workers differ, in very many audits: probes through honest stages, compared by pairs.

Each audit has an input and a projection of its own. A worker fails only where it differs by more than is allowed
from another one and does so again with `N_AGAIN` of `MAX_CONFIRMATIONS` fresh probes; how likely that is
`audit_tails` reckons.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.audit_answers import RANGES, WHOLE, TinyFiles, inputs_of, states_of, tiny_files
from coordinator.policy.audit_probe import N_SUMS, Probe, projection_signs
from coordinator.policy.audit_rules import Held, Tolerance, allowed_difference, is_dense
from protocol.ids import BlockRange
from protocol.messages import WeightFormat
from worker.stage import Stage

AT_ONCE = 256
MORE_WITH_EXPERTS = 4
"""Times as many inputs where there are experts: there honest workers differ by little, or by much and seldom."""

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Machine:
    """A way of making the same answers."""

    weights: WeightFormat
    dtype: torch.dtype
    """What is computed in."""
    codes: Any = None
    """What weights are packed as."""
    rounded: torch.dtype | None = None
    """What weights were rounded to before they were taken into `dtype`."""


FLOAT32 = Machine("float32", torch.float32)
FLOAT16 = Machine("float16", torch.float16)
BFLOAT16 = Machine("bfloat16", torch.bfloat16)
INT8 = Machine("int8", torch.bfloat16, "int8")
INT4 = Machine("int4", torch.bfloat16, "int4")
PAIRS = (
    (FLOAT32, FLOAT16), (FLOAT32, BFLOAT16), (FLOAT32, INT8),
    (FLOAT16, BFLOAT16), (FLOAT16, INT8), (BFLOAT16, INT8),
    (FLOAT32, Machine("float32", torch.float64)),
    (FLOAT16, Machine("float16", torch.float32, rounded=torch.float16)),
    (BFLOAT16, Machine("bfloat16", torch.float32, rounded=torch.bfloat16)),
    (INT8, Machine("int8", torch.float32, "int8")),
    (INT4, Machine("int4", torch.float32, "int4")),
)  # fmt: skip
"""Each two precisions that are compared; and each with itself on a machine whose sums are better."""
SLOW = (torch.float64,)
"""What takes much longer than all else, so only one probe in four goes there."""


@dataclass(frozen=True, slots=True)
class Cell:
    """Whose audits are taken together: blocks of one model, on two machines."""

    architecture: str
    seed: int
    """Of the random model."""
    blocks: BlockRange
    pair: int
    """Of `PAIRS`."""

    def __str__(self) -> str:
        return f"{self.architecture} {self.seed}, {self.blocks}"


@dataclass(slots=True)
class Alarms:
    """What came of audits."""

    ratios: dict[Cell, Floats] = field(default_factory=dict)
    """Of every audit: the measure that is further off, over what is allowed. An alarm is more than 1."""
    dense: set[str] = field(default_factory=set)
    """Architectures without experts."""
    n_inputs: int = 0
    """Different ones."""


def measured(n_inputs: int, architectures: Collection[str], models: Collection[int]) -> Alarms:
    """So many inputs in every range of blocks of random models of each architecture, one of each of these seeds.

    With experts `MORE_WITH_EXPERTS` times as many.
    """
    alarms = Alarms()
    for architecture in architectures:
        for seed in models:
            with tiny_files(architecture, seed=seed) as files:
                whole = _stages(files)
                n_each = n_inputs if is_dense(files.architecture) else MORE_WITH_EXPERTS * n_inputs
                for blocks in RANGES:
                    stages = {machine: stage.view(blocks) for machine, stage in whole.items()}
                    audit_range(alarms, Cell(architecture, seed, blocks, 0), files.architecture, stages, n_each)
    return alarms


def _stages(files: TinyFiles) -> dict[Machine, Stage]:
    found = {}
    for machine in dict.fromkeys(machine for pair in PAIRS for machine in pair):
        source = files if machine.rounded is None else files.rounded(machine.rounded)
        stage = source.loaded(WHOLE, machine.dtype, machine.codes)
        if stage is not None:
            found[machine] = stage
    return found


def audit_range(alarms: Alarms, cell: Cell, class_name: str, stages: dict[Machine, Stage], n_inputs: int) -> None:
    """So many inputs through blocks of one model of this class, on every machine; kept in `alarms`."""
    dense = is_dense(class_name)
    if dense:
        alarms.dense.add(cell.architecture)
    alarms.n_inputs += n_inputs
    parts: dict[int, list[Floats]] = {}
    for start in range(0, n_inputs, AT_ONCE):
        numbers = range(start, min(start + AT_ONCE, n_inputs))
        seeds = [f"{cell.architecture} {cell.seed} {cell.blocks} {number}" for number in numbers]
        for pair, found in _audit(stages, seeds, is_dense=dense):
            parts.setdefault(pair, []).append(found)
    alarms.ratios.update({replace(cell, pair=pair): np.concatenate(found) for pair, found in parts.items()})


def _audit(stages: dict[Machine, Stage], seeds: Sequence[str], *, is_dense: bool) -> Iterator[tuple[int, Floats]]:
    """The ratios of all pairs that are compared, each with its number."""
    given, n_slow = asked(next(iter(stages.values())), seeds), math.ceil(len(seeds) / 4)
    answers = {
        machine: projections(stage, given, n_slow if machine.dtype in SLOW else None)
        for machine, stage in stages.items()
    }
    for number, (one, other) in enumerate(PAIRS):
        if one not in answers or other not in answers:
            continue
        allowed = allowed_difference(
            Held(weights=one.weights), Held(weights=other.weights), len(stages[one].blocks), is_dense=is_dense
        )
        if allowed is not None:
            n_both = min(len(answers[one]), len(answers[other]))
            yield number, ratios(answers[one][:n_both], answers[other][:n_both], allowed)


@dataclass(frozen=True, slots=True)
class Asked:
    """The same probes for all machines."""

    inputs: torch.Tensor
    """As `inputs_of` makes them."""
    into: Floats
    """How states are projected: (probes, hidden_size, `N_SUMS`)."""


def asked(stage: Stage, seeds: Sequence[str]) -> Asked:
    """The probes of these seeds, of a stage's blocks."""
    probes = [
        Probe(seed=seed, blocks=stage.blocks, hidden_size=stage.hidden_size, vocab_size=stage.vocab_size)
        for seed in seeds
    ]
    codes = np.frombuffer(b"".join(projection_signs(seed, stage.hidden_size) for seed in seeds), np.uint8)
    codes = codes.reshape(len(seeds), -1, 1)
    into = np.zeros((*codes.shape[:2], N_SUMS), np.float32)
    np.put_along_axis(into, (codes & N_SUMS - 1).astype(np.intp), np.where(codes & 128, -1.0, 1.0), 2)
    return Asked(inputs_of(probes), into)


def projections(stage: Stage, given: Asked, n_probes: int | None = None) -> Floats:
    """What a stage answers to the first so many of the probes: (probes, positions, `N_SUMS`)."""
    found: Floats = states_of(stage, given.inputs[:n_probes]).numpy() @ given.into[:n_probes]
    return found


def ratios(one: Floats, other: Floats, allowed: Tolerance) -> Floats:
    """Of each audit what `coordinator.policy.audit_rules.compared` finds, as a share of what is allowed."""
    longest = np.maximum(np.linalg.norm(one, axis=2), np.linalg.norm(other, axis=2))
    apart = np.linalg.norm(one - other, axis=2) / np.where(longest > 0.0, longest, 1.0)
    apart = np.sort(np.where(np.isfinite(apart), apart, 2.0), axis=1)[:, ::-1]
    middle, stray = apart[:, apart.shape[1] // 2], apart[:, allowed.n_stray]
    found: Floats = np.maximum(middle / allowed.middle, stray / allowed.stray).astype(np.float32)
    return found
