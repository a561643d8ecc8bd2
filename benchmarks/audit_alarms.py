"""How likely audits take honest workers for cheats: very many probes through honest stages, compared by pairs.

A worker fails only where it differs from another by more than is allowed, so false quarantines are no likelier
than such alarms. They are counted, each audit with an input and a projection of its own; and since none is expected
in so few, the chance is reckoned from the largest hundredth of each model's audits too.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table

from benchmarks.audit_answers import RANGES, WHOLE, TinyFiles, states_of, tiny_files
from coordinator.policy.audit_probe import N_SUMS, Probe, projection_signs
from coordinator.policy.audit_rules import N_STRAY, Held, Tolerance, allowed_difference, is_dense
from protocol.messages import WeightFormat
from worker.stage import Stage

GOAL = 1e-5
"""Most false quarantines an audit."""
NONE_OF = 3.0
"""None of n seen: with 95 % certainty it is at most this in n."""
AT_ONCE = 256
TAIL = 0.01
"""The share of a model's audits, the largest, by which the chance of still larger ones is reckoned."""
CHECKED = 1e-3
"""How likely what is asked of the other half of the audits, to see whether the reckoning holds."""

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
SLOW = (torch.float16, torch.float64)
"""What CPUs take as long for as for all else together, so only one probe in four goes there."""


@dataclass(slots=True)
class Alarms:
    """What came of audits, by architecture and pair."""

    ratios: dict[tuple[str, int], list[Floats]] = field(default_factory=dict)
    """Of every audit: the measure that is further off, over what is allowed. An alarm is more than 1."""
    dense: set[str] = field(default_factory=set)
    """Architectures without experts."""
    n_inputs: int = 0
    """Different ones."""


def measured(n_inputs: int, architectures: Collection[str], models: Collection[int]) -> Alarms:
    """So many inputs in every range of blocks of random models of each architecture, one of each of these seeds."""
    alarms = Alarms()
    for architecture in architectures:
        for seed in models:
            with tiny_files(architecture, seed=seed) as files:
                whole = _stages(files)
                for blocks in RANGES:
                    stages = {machine: stage.view(blocks) for machine, stage in whole.items()}
                    for start in range(0, n_inputs, AT_ONCE):
                        numbers = range(start, min(start + AT_ONCE, n_inputs))
                        seeds = [f"{architecture} {seed} {blocks} {number}" for number in numbers]
                        _audit(alarms, architecture, files, stages, seeds)
    return alarms


def _stages(files: TinyFiles) -> dict[Machine, Stage]:
    found = {}
    for machine in dict.fromkeys(machine for pair in PAIRS for machine in pair):
        source = files if machine.rounded is None else files.rounded(machine.rounded)
        stage = source.loaded(WHOLE, machine.dtype, machine.codes)
        if stage is not None:
            found[machine] = stage
    return found


def _audit(
    alarms: Alarms, architecture: str, files: TinyFiles, stages: dict[Machine, Stage], seeds: Sequence[str]
) -> None:
    dense = is_dense(files.architecture)
    alarms.n_inputs += len(seeds)
    if dense:
        alarms.dense.add(architecture)
    slow = seeds[: math.ceil(len(seeds) / 4)]
    answers = {
        machine: projections(stage, slow if machine.dtype in SLOW else seeds) for machine, stage in stages.items()
    }
    for number, (one, other) in enumerate(PAIRS):
        if one not in answers or other not in answers:
            continue
        n_blocks = len(stages[one].blocks)
        allowed = allowed_difference(
            Held(weights=one.weights), Held(weights=other.weights), n_blocks, is_dense=dense
        )
        if allowed is not None:
            n_both = min(len(answers[one]), len(answers[other]))
            found = ratios(answers[one][:n_both], answers[other][:n_both], allowed, is_dense=dense)
            alarms.ratios.setdefault((architecture, number), []).append(found)


def projections(stage: Stage, seeds: Sequence[str]) -> Floats:
    """What a stage answers to the probes of these seeds: (probes, positions, `N_SUMS`)."""
    probes = [
        Probe(seed=seed, blocks=stage.blocks, hidden_size=stage.hidden_size, vocab_size=stage.vocab_size)
        for seed in seeds
    ]
    states = states_of(stage, probes).numpy()
    signs = np.frombuffer(b"".join(projection_signs(seed, states.shape[2]) for seed in seeds), np.uint8)
    signs = signs.reshape(len(seeds), -1, 1)
    into = np.zeros((*signs.shape[:2], N_SUMS), np.float32)  # of each probe: (hidden_size, sums)
    np.put_along_axis(into, (signs & N_SUMS - 1).astype(np.intp), np.where(signs & 128, -1.0, 1.0), 2)
    found: Floats = states @ into
    return found


def ratios(one: Floats, other: Floats, allowed: Tolerance, *, is_dense: bool) -> Floats:
    """Of each audit what `coordinator.policy.audit_rules.compared` finds, as a share of what is allowed."""
    longest = np.maximum(np.linalg.norm(one, axis=2), np.linalg.norm(other, axis=2))
    apart = np.linalg.norm(one - other, axis=2) / np.where(longest > 0.0, longest, 1.0)
    apart = np.sort(np.where(np.isfinite(apart), apart, 2.0), axis=1)[:, ::-1]
    middle, stray = apart[:, apart.shape[1] // 2], apart[:, 0 if is_dense else N_STRAY]
    found: Floats = np.maximum(middle / allowed.middle, stray / allowed.stray).astype(np.float32)
    return found


@dataclass(frozen=True, slots=True)
class Tail:
    """The largest of many positive values, taken for a power law: thicker than what any measured one showed."""

    share: float
    """Of all values, those beyond `start`."""
    start: float
    slope: float
    """Mean logarithm of those over `start` (Hill's estimate)."""

    def chance(self, level: float) -> float:
        """How likely a value beyond `level`, which is beyond `start`."""
        return self.share * (level / self.start) ** (-1.0 / self.slope)

    def level(self, chance: float) -> float:
        """What values pass with this chance, which is less than `share`."""
        return self.start * (self.share / chance) ** self.slope


def tail_of(values: Floats) -> Tail:
    """By the largest `TAIL` of the values."""
    ordered = np.sort(values)[::-1].astype(float)
    n_largest = max(2, int(len(ordered) * TAIL))
    start = max(ordered[n_largest], 1e-9)
    slope = float(np.mean(np.log(np.maximum(ordered[:n_largest], start) / start)))
    return Tail(n_largest / len(ordered), start, max(slope, 1e-3))


def _by_pair(alarms: Alarms) -> Iterator[tuple[int, dict[str, Floats]]]:
    for number in range(len(PAIRS)):
        cells = {name: np.concatenate(each) for (name, pair), each in alarms.ratios.items() if pair == number}
        if cells:
            yield number, cells


def table(alarms: Alarms) -> Table:
    """Of every pair: how near to an alarm honest workers come, and how likely one is."""
    found = Table(
        "experts", "one", "other", "audits", "alarms", "at most", "most", "where", "1e-5", "chance, mean", "worst"
    )
    for number, every in _by_pair(alarms):
        for is_plain in (True, False):
            cells = {name: values for name, values in every.items() if (name in alarms.dense) == is_plain}
            if not cells:
                continue
            n_audits, n_alarms = sum(map(len, cells.values())), sum(int((v > 1.0).sum()) for v in cells.values())
            where = max(cells, key=lambda name: float(cells[name].max()))
            chances = [tail_of(values).chance(1.0) for values in cells.values()]
            levels = [tail_of(values).level(GOAL) for values in cells.values()]
            one, other = PAIRS[number]
            found.add_row(
                "no" if is_plain else "yes", one.weights,
                other.weights if one.weights != other.weights else f"in {other.dtype}".replace("torch.", ""),
                f"{n_audits:,}", str(n_alarms), f"{_at_most(n_alarms, n_audits):.0e}",
                f"{cells[where].max():.2f}", where, f"{max(levels):.2f}",
                f"{np.mean(chances):.0e}", f"{max(chances):.0e}",
            )  # fmt: skip
    return found


def _at_most(n_seen: int, n_audits: int) -> float:
    """The 95 % bound of a share of which so many were seen: exact for none, and near it for more."""
    return NONE_OF / n_audits if n_seen == 0 else (n_seen + 1.64 * math.sqrt(n_seen) + 2.0) / n_audits


def words(alarms: Alarms) -> str:
    """What all say together, and whether the reckoning of rare alarms holds where it can be seen."""
    every = [np.concatenate(each) for each in alarms.ratios.values()]
    n_audits, n_alarms = sum(map(len, every)), sum(int((values > 1.0).sum()) for values in every)
    expected = seen = 0.0
    for values in every:
        rest = values[1::2]
        expected += CHECKED * len(rest)
        seen += float((rest > tail_of(values[::2]).level(CHECKED)).sum())
    bound = _at_most(n_alarms, alarms.n_inputs)
    return (
        f"{n_alarms} alarms in {n_audits:,} audits of honest pairs, of {alarms.n_inputs:,} inputs: with 95 % "
        f"certainty at most {bound:.1e} of inputs raise one; the goal is {GOAL:.0e}: "
        f"{'met' if bound <= GOAL else 'NOT met'}.\n"
        f"Of the half that the reckoning wasn't made from, {seen:,.0f} pass what one in {1 / CHECKED:,.0f} should; "
        f"{expected:,.0f} were expected."
    )
