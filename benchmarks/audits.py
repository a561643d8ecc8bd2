"""How well audits tell cheats from honest workers, by the coordinator's own rules and on real (tiny) models.

    python -m benchmarks.audits differences [--audits N]   how far honest workers differ
    python -m benchmarks.audits alarms [--inputs N]        how likely false quarantines are, by very many inputs
    python -m benchmarks.audits real [--inputs N] [--anew] likewise with SmolLM2-135M instead of tiny random models
    python -m benchmarks.audits repeats [--inputs N]       how far an honest worker differs from itself, asked twice
    python -m benchmarks.audits real-repeats [--inputs N]  likewise with SmolLM2-135M
    python -m benchmarks.audits attacks [--audits N]       attack x audits that it takes to find it
    python -m benchmarks.audits simulation [--trials N]    wrong on 10 % of the steps: audits until quarantine

`differences` with 12 audits takes some ten minutes, `alarms` with 768 inputs likewise (they are of every range of
every model; exit code 1 if false quarantines may be more frequent than they should be). Of seeds the same come out
again: "seed 0", "seed 1" and so on.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import audit_alarms, audit_honest, audit_real, audit_tails, audit_twice
from benchmarks import audit_answers as answers
from benchmarks.audit_answers import WHOLE, TinyFiles, answer, tiny_files
from benchmarks.audit_simulation import simulation
from coordinator.policy.audit_rules import Held, allowed_difference, compared, is_dense
from tests.support.tiny_models import TINY_CONFIGS

SURE = 0.99
EXACT, ROUNDED = Held(weights="float32"), Held(weights="bfloat16")
ATTACKED = ("llama", "qwen3", "mistral", "olmo2")
WITH_EXPERTS = ("qwen3_moe", "mixtral", "gpt_oss", "deepseek_v3")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "what", choices=("differences", "alarms", "real", "repeats", "real-repeats", "attacks", "simulation")
    )
    parser.add_argument("--audits", type=_at_least(2), default=12, help="Audits of each kind.")
    parser.add_argument(
        "--inputs",
        type=_at_least(200),
        default=768,
        help="Of `alarms`, `real` and both `repeats`, in each range of a model; with experts four times as many.",
    )
    parser.add_argument("--random", type=_at_least(1), default=1, help="Random models an architecture of `alarms`.")
    parser.add_argument("--trials", type=_at_least(1), default=5000, help="Workers of `simulation`.")
    parser.add_argument(
        "--models", nargs="+", choices=tuple(TINY_CONFIGS), default=tuple(TINY_CONFIGS), metavar="ARCHITECTURE",
        help=f"Those of `differences`, `alarms` and `repeats`, all where none is named: {', '.join(TINY_CONFIGS)}.",
    )  # fmt: skip
    parser.add_argument(
        "--anew",
        action="store_true",
        help="Of `real`: int8 as a worker rounds full-precision weights, not as it takes over the file's codes.",
    )
    arguments = parser.parse_args()
    if arguments.anew and arguments.what != "real":
        parser.error(f"--anew goes with `real`, not with `{arguments.what}`: tiny models are always rounded anew")
    torch.set_num_threads(1)
    match arguments.what:
        case "differences":
            honest = audit_honest.measured(arguments.audits, arguments.models)
            Console().print(audit_honest.table(honest))
            print(audit_honest.words(honest))
        case "alarms" | "real":
            alarms = (
                audit_real.measured(arguments.inputs, is_anew=arguments.anew)
                if arguments.what == "real"
                else audit_alarms.measured(arguments.inputs, arguments.models, range(arguments.random))
            )
            Console(width=170).print(audit_tails.table(alarms))
            print(audit_tails.words(alarms))
            raise SystemExit(0 if audit_tails.is_reached(alarms) else 1)
        case "repeats" | "real-repeats":
            twice = (
                audit_twice.measured_really(arguments.inputs)
                if arguments.what == "real-repeats"
                else audit_twice.measured(arguments.inputs, arguments.models)
            )
            Console(width=170).print(audit_twice.table(twice))
            raise SystemExit(0 if audit_twice.is_reached(twice) else 1)
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
    """How often one probe finds an attack, and how many audits it takes until it has failed."""
    table = Table("attack", "experts", "compared in", "found", "of", f"audits for {SURE:.0%}")
    kinds: dict[str, tuple[answers.Attack | None, Held | None]] = {
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
        for architectures in (ATTACKED, WITH_EXPERTS):
            for said in (EXACT, ROUNDED):
                found = [
                    is_found
                    for architecture in architectures
                    for is_found in _attacked(architecture, altered.get(name), attack, said, really, n_audits)
                ]
                share = sum(found) / len(found) if found else 0.0
                table.add_row(
                    name, "no" if architectures is ATTACKED else "yes", str(said), str(sum(found)), str(len(found)),
                    _audits_needed(share) if found else "can't be held so",
                )  # fmt: skip
    return table


def _attacked(
    architecture: str,
    how: Callable[[dict[str, torch.Tensor]], None] | None,
    attack: answers.Attack | None,
    said: Held,
    really: Held | None,
    n_audits: int,
) -> Iterator[bool]:
    """Whether it is found, of each probe; none where the model can't be held in what it really is."""
    with tiny_files(architecture) as files:
        torch.manual_seed(0)
        source: TinyFiles = files if how is None else files.altered(how)
        honest, cheating = files.stage(WHOLE, said), source.stage(WHOLE, really or said)
        assert honest is not None
        if cheating is None:
            return
        if attack is not None:
            attack(cheating)
        dense = is_dense(files.architecture)
        allowed = allowed_difference(said, said, len(WHOLE), is_dense=dense)
        assert allowed is not None
        for number in range(n_audits):
            seed = f"seed {number}"
            one, other = answer(honest, said, seed), answer(cheating, really or said, seed)
            yield not compared(("one", one), ("other", other), allowed).agrees


def _audits_needed(share: float) -> str:
    """Until one of them found it and it was confirmed, where a probe finds it with this chance."""
    fails = share * audit_tails.confirmed(share)
    if fails == 0.0:
        return "not found"
    return "1" if fails >= SURE else str(math.ceil(math.log(1.0 - SURE) / math.log(1.0 - fails)))


if __name__ == "__main__":
    main()
