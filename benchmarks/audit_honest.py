"""How far honest workers of every two precisions differ, and how often a probe would have one fail falsely."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

from rich.table import Table

from benchmarks.audit_answers import FORMS, RANGES, TinyFiles, answer, tiny_files
from coordinator.policy.audit_probe import Projection
from coordinator.policy.audit_rules import (
    Comparison,
    Held,
    Tolerance,
    allowed_difference,
    compared,
    is_dense,
    measures,
    outcomes,
)
from protocol.ids import BlockRange

Pair = tuple[Held, Held]
Cell = tuple[Tolerance, list[tuple[float, float]]]
"""What is allowed between two in one range of one model, and the two measures of each audit."""


@dataclass(slots=True)
class Honest:
    """What was measured of honest workers."""

    cells: dict[tuple[bool, Held, Held], list[Cell]] = field(default_factory=dict)
    """By whether the model has no experts, and what the two hold it in."""
    n_audits: int = 0
    """Of a target, a partner and a third, each in another form."""
    n_suspected: int = 0
    n_failing: int = 0
    """Of whom one fails if a fresh probe shows it again."""


def measured(n_audits: int, architectures: Collection[str]) -> Honest:
    """So many audits of every two and every three forms, in every range of blocks of tiny models."""
    honest = Honest()
    for architecture in architectures:
        with tiny_files(architecture) as files:
            for blocks in RANGES:
                _measure(honest, files, blocks, n_audits)
    return honest


def _measure(honest: Honest, files: TinyFiles, blocks: BlockRange, n_audits: int) -> None:
    dense = is_dense(files.architecture)
    allowed = {
        (one, other): tolerance
        for one, other in itertools.combinations(FORMS, 2)
        if (tolerance := allowed_difference(one, other, len(blocks), is_dense=dense)) is not None
    }
    cells: dict[Pair, Cell] = {pair: (tolerance, []) for pair, tolerance in allowed.items()}
    for given in _answers(files, blocks, n_audits):
        comparisons = {}
        for (one, other), tolerance in allowed.items():
            if one in given and other in given:
                cells[one, other][1].append(measures(given[one], given[other], tolerance.n_stray))
                comparisons[frozenset((str(one), str(other)))] = compared(
                    (str(one), given[one]), (str(other), given[other]), tolerance
                )
        _rule(honest, [str(held) for held in given], comparisons)
    for pair, cell in cells.items():
        if cell[1]:
            honest.cells.setdefault((dense, *pair), []).append(cell)


def _answers(files: TinyFiles, blocks: BlockRange, n_audits: int) -> Iterator[dict[Held, Projection]]:
    stages = {held: stage for held in FORMS if (stage := files.stage(blocks, held)) is not None}
    for number in range(n_audits):
        yield {held: answer(stage, held, f"seed {number}") for held, stage in stages.items()}


def _rule(honest: Honest, names: Sequence[str], comparisons: dict[frozenset[str], Comparison]) -> None:
    """Every target with every partner and every third, by the coordinator's own rules."""
    for target, partner, third in itertools.permutations(names, 3):
        if frozenset((target, partner)) in comparisons:
            ruling = outcomes(target, partner, comparisons, [third])
            honest.n_audits += 1
            honest.n_suspected += ruling.target == "suspected"
            honest.n_failing += "failed" in (ruling.target, ruling.partner)


def table(honest: Honest) -> Table:
    """Of every two precisions that are compared: how far apart honest workers are."""
    found = Table("experts", "one", "other", "audits", "alarms", "middle", "most", "worst position", "most")
    for (dense, one, other), cells in honest.cells.items():
        middles = [middle for _, cell in cells for middle, _ in cell]
        strays = [stray for _, cell in cells for _, stray in cell]
        n_alarms = sum(m > allowed.middle or s > allowed.stray for allowed, cell in cells for m, s in cell)
        found.add_row(
            "no" if dense else "yes", str(one), str(other), str(len(middles)), str(n_alarms),
            f"{statistics.median(middles):.4f}", f"{max(middles):.4f}",
            f"{statistics.median(strays):.4f}", f"{max(strays):.4f}",
        )  # fmt: skip
    return found


def words(honest: Honest) -> str:
    """How often an honest worker was suspected, and how often it would fail by a single probe."""
    return (
        f"In {honest.n_failing} of {honest.n_audits:,} audits of honest workers, every three forms of all models "
        f"and ranges, one would fail if a fresh probe showed it again; {honest.n_suspected} ended in suspicion. "
        "int4 is compared with int4 alone. How likely false quarantines are: `alarms`."
    )
