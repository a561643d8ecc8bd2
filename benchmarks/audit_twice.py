"""How far an honest worker differs from itself, asked the same probe twice: alone, and in batches with others.

The first answer is made in a batch of probes that are in step; the second in a batch of other ones, each at another
step, so that pieces of prompts and single tokens go together; a part is asked a third time, alone. A false
quarantine takes three probes at which it differs from itself by more than is allowed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from random import Random

import numpy as np
import torch
from rich.table import Table

from benchmarks.audit_alarms import MORE_WITH_EXPERTS, Cell
from benchmarks.audit_answers import FORMS, WHOLE, tiny_files
from benchmarks.audit_tails import GOAL, Chance, chance_of
from benchmarks.perplexity import Arrangement, PackedModel
from coordinator.policy.audit_probe import N_POSITIONS, STEPS, Probe, projected
from coordinator.policy.audit_rules import Held, allowed_difference, compared, is_dense
from protocol.ids import BlockRange
from worker.batching_trial import settle_batching
from worker.stage import Stage, StageInput

TOGETHER = 16
"""Sessions of a batch."""
ALONE_EVERY = 8
"""Of so many probes one is asked a third time, alone: that takes as long as a batch."""
REAL_RANGES = (BlockRange(0, 30), BlockRange(0, 10))
REAL_FORMS = tuple(held for held in FORMS if held.weights != "float16" and held.kv is None)
"""Most processors are too slow in float16 for so many probes."""

Rows = list[list[float]]
Found = dict[tuple[Held, bool], list[Chance]]
"""By what models are held in, and whether they have experts: of each range of blocks of each model."""


class _Session:
    """One probe on its way through a stage."""

    def __init__(self, stage: Stage, held: Held, seed: str, n_late: int) -> None:
        self.probe = Probe(
            seed=seed, blocks=stage.blocks, hidden_size=stage.hidden_size, vocab_size=stage.vocab_size
        )
        self.rows: Rows = []
        self._n_late = n_late
        self._left = list(STEPS)
        self._dtype = stage.dtype
        self._cache = stage.new_cache(N_POSITIONS, held.kv)

    def next(self) -> StageInput | None:
        """What it sends now; None before it begins, and when it is over."""
        if self._n_late > 0 or not self._left:
            self._n_late -= 1
            return None
        n_tokens, position = self._left.pop(0), len(self.rows)
        if self.probe.takes_tokens:
            payload = torch.tensor(self.probe.token_ids(position, n_tokens))
        else:
            data = bytearray(self.probe.states(position, n_tokens))
            payload = torch.frombuffer(data, dtype=torch.float32).reshape(n_tokens, -1).to(self._dtype)
        return StageInput(payload=payload, position=position, cache=self._cache)


def answers(stage: Stage, held: Held, seeds: Sequence[str], *, rng: Random | None = None) -> list[Rows]:
    """What a worker hands on of each of these probes, run in one batch; with `rng` they aren't in step."""
    late = [rng.randrange(len(STEPS)) if rng is not None else 0 for _ in seeds]
    sessions = [_Session(stage, held, seed, n_late) for seed, n_late in zip(seeds, late, strict=True)]
    while any(len(one.rows) < N_POSITIONS for one in sessions):
        given = [(one, step) for one in sessions if (step := one.next()) is not None]
        if given:
            for (one, _), rows in zip(given, stage.run([step for _, step in given]), strict=True):
                one.rows += rows.float().tolist()
    return [one.rows for one in sessions]


def measured(n_inputs: int, architectures: Collection[str]) -> Found:
    """So many probes of tiny models of each architecture, in each form; with experts `MORE_WITH_EXPERTS` times."""
    found: Found = {}
    for architecture in architectures:
        with tiny_files(architecture) as files:
            for held in FORMS:
                stage = files.stage(WHOLE, held)
                if stage is not None:
                    dense = is_dense(files.architecture)
                    n_each = n_inputs if dense else MORE_WITH_EXPERTS * n_inputs
                    one = _of_range(stage, held, architecture, n_each, is_dense=dense)
                    found.setdefault((held, not dense), []).append(one)
    return found


def measured_really(n_inputs: int) -> Found:
    """Likewise of SmolLM2-135M, the whole and its first third, whose tokens have massive activations."""
    found: Found = {}
    with tempfile.TemporaryDirectory(prefix="brigade-audits-") as scratch:
        model = PackedModel(Path(scratch))
        for held in REAL_FORMS:
            dtype, codes = FORMS[held]
            whole = model.stage(Arrangement(name="", dtype=dtype, quantization=codes, is_rounded_anew=False))
            found[held, False] = [
                _of_range(whole.view(blocks), held, "smollm2", n_inputs, is_dense=True) for blocks in REAL_RANGES
            ]
    return found


def _of_range(stage: Stage, held: Held, model: str, n_inputs: int, *, is_dense: bool) -> Chance:
    settle_batching(stage)
    ratios = list(_ratios(stage, held, [f"{model} {stage.blocks} {n}" for n in range(n_inputs)], is_dense=is_dense))
    return chance_of(Cell(model, 0, stage.blocks, 0), np.array(ratios, np.float32))


def _ratios(stage: Stage, held: Held, seeds: list[str], *, is_dense: bool) -> Iterator[float]:
    """Of each probe and each further answer how far it differs from the first, as a share of what is allowed."""
    allowed = allowed_difference(held, held, len(stage.blocks), is_dense=is_dense)
    assert allowed is not None
    rng = Random(1)  # noqa: S311 - to be repeated
    first = dict(_in_batches(stage, held, seeds, None))
    mixed = rng.sample(seeds, len(seeds))
    again = [*_in_batches(stage, held, mixed, rng)]
    again += [(seed, answers(stage, held, [seed])[0]) for seed in seeds[::ALONE_EVERY]]
    for seed, rows in again:
        one = compared(("first", projected(seed, first[seed])), ("again", projected(seed, rows)), allowed)
        yield one.difference / one.allowed


def _in_batches(stage: Stage, held: Held, seeds: list[str], rng: Random | None) -> Iterator[tuple[str, Rows]]:
    for start in range(0, len(seeds), TOGETHER):
        part = seeds[start : start + TOGETHER]
        yield from zip(part, answers(stage, held, part, rng=rng), strict=True)


def is_reached(found: Found) -> bool:
    """Whether false quarantines are as rare as they have to be."""
    return all(one.quarantine_at_most < GOAL for cells in found.values() for one in cells)


def table(found: Found) -> Table:
    """Of every form: how near an honest worker comes to contradicting itself."""
    shown = Table(
        "held in", "experts", "answers", "alarms", "nearest", "worst", "alarm, at most", "quarantine, at most"
    )
    for (held, has_experts), cells in found.items():
        worst = max(cells, key=lambda one: one.quarantine_at_most)
        shown.add_row(
            str(held), "yes" if has_experts else "no", f"{sum(each.n_audits for each in cells):,}",
            str(sum(each.n_alarms for each in cells)), f"{max(each.most for each in cells):.2f}", str(worst.cell),
            f"{worst.by_power_law:.0e}; {worst.by_counting:.0e}", f"{worst.quarantine_at_most:.0e}",
        )  # fmt: skip
    return shown
