"""`python -m tests.fuzz`: every target for a while, by atheris if it is installed, else by hypothesis.

    python -m tests.fuzz [--seconds 60] [--jobs 1] [--engine auto] [TARGET ...]
    python -m tests.fuzz --replay FILE TARGET

A finding is saved, with the command that shows it again; put it into tests/fuzz/findings/TARGET once it is mended.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.engines import has_atheris
from tests.fuzz.target import FindingError, check
from tests.fuzz.targets import TARGETS

FOLDER = Path(".fuzz")
"""Findings, and the inputs that reached something new, from which the next run goes on."""
STARTUP_S = 180.0
"""To import everything on a busy machine, and to shrink a finding."""
_N_RUN = re.compile(r"stat::number_of_executed_units:\s*(\d+)")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one target."""

    name: str
    n_inputs: int
    took_s: float
    is_clean: bool
    last_words: str
    is_over: bool = True
    """Whether its process ended in time."""

    @property
    def words(self) -> str:
        """What became of it."""
        return "clean" if self.is_clean else "FINDING" if self.is_over else "NOT DONE"


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def fuzzed(name: str, engine: str, seconds: float) -> Outcome:
    """Run one target in a process of its own, and tell."""
    command = [sys.executable, "-m", "tests.fuzz.child", engine, name, f"{seconds:g}", str(FOLDER)]
    started_s, is_over = time.monotonic(), True
    try:
        done = subprocess.run(command, capture_output=True, timeout=seconds + STARTUP_S, check=False)
        words, is_clean = (done.stderr + done.stdout).decode(errors="replace"), done.returncode == 0
    except subprocess.TimeoutExpired as exc:
        words, is_clean, is_over = (exc.stderr or b"").decode(errors="replace"), False, False
    counted = _N_RUN.findall(words)
    took_s = time.monotonic() - started_s
    told = "\n".join(line for line in words.splitlines() if not line.startswith(("INFO:", "WARNING:")))
    outcome = Outcome(name, int(counted[-1]) if counted else 0, took_s, is_clean, told[-3000:], is_over)
    say(f"{name:22} {outcome.n_inputs:>10,} inputs in {took_s:5.0f} s   {outcome.words}")
    if not is_clean:
        say(explained(outcome, started_s))
    return outcome


def explained(outcome: Outcome, started_s: float) -> str:
    """What there is to know of a target that isn't clean, and what to do."""
    since_s = time.time() - (time.monotonic() - started_s) - 1  # noqa: TID251 - files are dated by the wall clock
    found = FOLDER / "findings" / outcome.name
    files = [path for path in found.glob("*") if path.stat().st_mtime >= since_s] if found.exists() else []
    shown = [f"  again: {sys.executable} -m tests.fuzz --replay {path} {outcome.name}" for path in files]
    if not shown and not outcome.is_over:
        shown = [
            f"  not done after {outcome.took_s:.0f} s, {STARTUP_S:.0f} s more than it had: an input takes for ever "
            f"or the machine is too busy; try it alone: {sys.executable} -m tests.fuzz {outcome.name}"
        ]
    return "\n".join([outcome.last_words, *(shown or ["  no input was saved: the process ended at the start"])])


def replay(name: str, path: Path) -> int:
    """Run one saved input."""
    try:
        check(TARGETS[name], path.read_bytes())
    except FindingError as finding:
        sys.stderr.write(f"{finding}\n")
        raise
    say(f"{name} handles {path} as it says")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description="Fuzz every reader of strangers' bytes."
    )
    parser.add_argument(
        "targets", nargs="*", metavar="TARGET", help=f"some of: {', '.join(TARGETS)} (default: all)"
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="for each target (default: 60)")
    parser.add_argument("--jobs", type=int, default=1, help="targets at a time (default: 1)")
    parser.add_argument("--engine", choices=("auto", "atheris", "hypothesis"), default="auto")
    parser.add_argument(
        "--replay", type=Path, metavar="FILE", help="run this input of one TARGET, and nothing else"
    )
    chosen = parser.parse_args()
    names = chosen.targets or list(TARGETS)
    if unknown := sorted(set(names) - TARGETS.keys()):
        parser.error(f"there is no target {', '.join(unknown)}; there are {', '.join(TARGETS)}")
    if not 1 <= chosen.seconds <= 86_400 or not 1 <= chosen.jobs <= 64:
        parser.error(f"--seconds {chosen.seconds:g} must be 1 to 86400, and --jobs {chosen.jobs} 1 to 64")
    if chosen.replay is not None:
        return (
            replay(names[0], chosen.replay) if len(names) == 1 else parser.error("--replay FILE needs one TARGET")
        )
    engine = chosen.engine if chosen.engine != "auto" else "atheris" if has_atheris() else "hypothesis"
    jobs, minutes = chosen.jobs, len(names) * chosen.seconds / chosen.jobs / 60
    how = f"by {engine}, {chosen.seconds:g} s each, {jobs} at a time"
    say(f"{len(names)} targets {how}: {minutes:.0f} minutes, and the starts")
    with ThreadPoolExecutor(chosen.jobs) as pool:
        outcomes = list(pool.map(lambda name: fuzzed(name, engine, chosen.seconds), names))
    failed = [outcome.name for outcome in outcomes if not outcome.is_clean]
    total = sum(outcome.n_inputs for outcome in outcomes)
    say(f"{total:,} inputs, {len(outcomes)} targets, {len(failed)} not clean {', '.join(failed)}".rstrip())
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
