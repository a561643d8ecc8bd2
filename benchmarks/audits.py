"""How well audits tell cheats from honest workers, by the coordinator's own rules and on real (tiny) models.

    python -m benchmarks.audits differences [--audits N]   how far honest workers differ; false quarantines
    python -m benchmarks.audits alarms [--inputs N]        how likely a false alarm is, by very many inputs
    python -m benchmarks.audits attacks [--audits N]       attack x audits that it takes to find it
    python -m benchmarks.audits simulation [--trials N]    wrong on 10 % of the steps: audits until quarantine

`differences` with 12 audits takes some ten minutes, `alarms` with 768 inputs likewise (they are of every range of
every model). Of seeds the same come out again: "seed 0", "seed 1" and so on.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from random import Random

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import audit_alarms, audit_honest
from benchmarks import audit_answers as answers
from benchmarks.audit_answers import WHOLE, answer, tiny_files
from coordinator.policy.audit_evidence import evidence_of
from coordinator.policy.audit_probe import N_SUMS, STEPS, Projection
from coordinator.policy.audit_rules import (
    Held,
    allowed_difference,
    compared,
    outcomes,
)
from coordinator.policy.state import ClusterState
from coordinator.policy.trust import TrustRecord, reviewed, with_evidence
from protocol.audit_rest import AuditInfo
from protocol.ids import ModelName, WorkerId
from tests.support.tiny_models import TINY_CONFIGS

MOST_AUDITS = 20
SURE = 0.99
EXACT, ROUNDED = Held(weights="float32"), Held(weights="bfloat16")
ATTACKED = ("llama", "qwen3", "mistral", "olmo2")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("differences", "alarms", "attacks", "simulation"))
    parser.add_argument("--audits", type=_at_least(2), default=12, help="Audits of each kind.")
    parser.add_argument("--inputs", type=_at_least(200), default=768, help="Of `alarms`, in each range of a model.")
    parser.add_argument("--random", type=_at_least(1), default=1, help="Random models an architecture of `alarms`.")
    parser.add_argument("--trials", type=_at_least(1), default=5000, help="Workers of `simulation`.")
    parser.add_argument(
        "--models", nargs="+", choices=tuple(TINY_CONFIGS), default=tuple(TINY_CONFIGS), metavar="ARCHITECTURE",
        help=f"Those of `differences` and `alarms`, all where none is named: {', '.join(TINY_CONFIGS)}.",
    )  # fmt: skip
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    match arguments.what:
        case "differences":
            honest = audit_honest.measured(arguments.audits, arguments.models)
            Console().print(audit_honest.table(honest))
            print(audit_honest.words(honest))
        case "alarms":
            alarms = audit_alarms.measured(arguments.inputs, arguments.models, range(arguments.random))
            Console(width=150).print(audit_alarms.table(alarms))
            print(audit_alarms.words(alarms))
        case "attacks":
            Console().print(attacks(arguments.audits))
        case "simulation":
            print(simulation(arguments.trials))


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"{text}; it must be {least} or more")
        return int(text)

    return number


# ------------------------------------------------------------------ cheats


def attacks(n_audits: int) -> Table:
    """How often one audit finds an attack, and how many it takes to be sure of it."""
    table = Table("attack", "compared in", "found", "of", f"audits for {SURE:.0%}")
    kinds = {
        "a block skipped": (answers.skips_a_block, None),
        "half of the blocks left out": (answers.leaves_early, None),
        "zeros": (answers.zeros, None),
        "garbage on 10 % of the steps": (answers.garbage(0.1, seed=1), None),
        "garbage on 1 % of the steps": (answers.garbage(0.01, seed=2), None),
        "int4 in place of what it says": (None, Held(weights="int4")),
        "int8 in place of what it says": (None, Held(weights="int8")),
    }
    altered = {
        "other weights of one block": answers.other_weights_of_one_block,
        "1 % noise on one matrix": answers.one_matrix_a_little_off,
    }
    for name in (*altered, *kinds):
        attack, really = kinds.get(name, (None, None))
        for said in (EXACT, ROUNDED):
            n_found = n_asked = 0
            for architecture in ATTACKED:
                with tiny_files(architecture) as files:
                    torch.manual_seed(0)
                    source = files.altered(altered[name]) if name in altered else files
                    honest, cheating = files.stage(WHOLE, said), source.stage(WHOLE, really or said)
                    assert honest is not None
                    if cheating is None:
                        continue
                    if attack is not None:
                        attack(cheating)
                    for number in range(n_audits):
                        seed = f"seed {number}"
                        n_asked += 1
                        n_found += not _agree(
                            answer(honest, said, seed), answer(cheating, really or said, seed), said, said
                        )
            share = n_found / n_asked if n_asked else 0.0
            table.add_row(name, str(said), str(n_found), str(n_asked), _audits_needed(share))
    return table


def _agree(one: Projection, other: Projection, held: Held, other_held: Held) -> bool:
    allowed = allowed_difference(held, other_held, len(WHOLE), is_dense=True)
    assert allowed is not None
    return compared(("one", one), ("other", other), allowed, is_dense=True).agrees


def _audits_needed(share: float) -> str:
    if share == 0.0:
        return "not found"
    return "1" if share >= SURE else str(math.ceil(math.log(1.0 - SURE) / math.log(1.0 - share)))


# ------------------------------------------------------------------ until quarantine


def simulation(n_trials: int, *, share: float = 0.1, seed: int = 1) -> str:
    """How many audits it takes until a worker that is wrong on so many of its steps is quarantined.

    The honest answers are real ones, of a float32 and a bfloat16 worker and a third; on a wrong step the positions
    of that step alone are replaced by numbers of the same size, which is the least that a wrong step can do.
    """
    rng = Random(seed)  # noqa: S311 - printed, to be repeated
    with tiny_files("llama") as files:
        exact, rounded = files.stage(WHOLE, EXACT), files.stage(WHOLE, ROUNDED)
        assert exact is not None
        assert rounded is not None
        pool = [(answer(exact, EXACT, f"seed {i}"), answer(rounded, ROUNDED, f"seed {i}")) for i in range(20)]
    needed = [_audits_until_quarantine(pool, share, rng) for _ in range(n_trials)]
    n_in_time = sum(n <= MOST_AUDITS for n in needed)
    low, high = _interval(n_in_time, n_trials)
    return (
        f"wrong on {share:.0%} of the steps, seed {seed}: {n_in_time} of {n_trials} quarantined within "
        f"{MOST_AUDITS} audits (95 % interval {low:.4f} to {high:.4f}); median {statistics.median(needed):g}, "
        f"most {max(needed)}"
    )


def _audits_until_quarantine(pool: Sequence[tuple[Projection, Projection]], share: float, rng: Random) -> int:
    record = TrustRecord()
    for number in range(1, 100 * MOST_AUDITS):
        exact, rounded = rng.choice(pool)
        pair = allowed_difference(EXACT, ROUNDED, len(WHOLE), is_dense=True)
        alike = allowed_difference(EXACT, EXACT, len(WHOLE), is_dense=True)
        assert pair is not None
        assert alike is not None
        given = {"bad": _spoilt(rounded, share, rng), "good": exact, "third": exact}
        comparisons = {
            frozenset((a, b)): compared(
                (a, given[a]), (b, given[b]), pair if "bad" in (a, b) else alike, is_dense=True
            )
            for a, b in itertools.combinations(given, 2)
        }
        ruling = outcomes("bad", "good", comparisons, ["third"])
        info = AuditInfo(
            at="", worker_id=WorkerId("bad"), model=ModelName("m"), blocks=WHOLE, partner="good",
            referee=ruling.referee, outcome=ruling.target, partner_outcome=ruling.partner, difference=None,
            allowed=None, reason="",
        )  # fmt: skip
        for seen in evidence_of(info, ClusterState(), 60.0 * number):
            record = reviewed(with_evidence(record, seen.evidence, 60.0 * number), 60.0 * number)
        if record.is_quarantined:
            return number
    return 100 * MOST_AUDITS


def _spoilt(projection: Projection, share: float, rng: Random) -> Projection:
    rows = list(projection)
    at = 0
    for n_tokens in STEPS:
        if rng.random() < share:
            for position in range(at, at + n_tokens):
                size = math.hypot(*rows[position]) / math.sqrt(N_SUMS)
                rows[position] = tuple(rng.gauss(0.0, size) for _ in range(N_SUMS))
        at += n_tokens
    return tuple(rows)


def _interval(n_hits: int, n_trials: int) -> tuple[float, float]:
    """Wilson's, 95 %."""
    z, share = 1.96, n_hits / n_trials
    middle = (share + z * z / (2 * n_trials)) / (1 + z * z / n_trials)
    half = z / (1 + z * z / n_trials) * math.sqrt(share * (1 - share) / n_trials + z * z / (4 * n_trials**2))
    return middle - half, min(1.0, middle + half)


if __name__ == "__main__":
    main()
