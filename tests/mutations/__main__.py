"""`python -m tests.mutations`: take each defence out, and see that the attack's test fails.

    python -m tests.mutations [--only CLASS ...] [--jobs 1]

A curated list of defences (tests/mutations/table.py), so neither mutmut nor cosmic-ray, which ask whether lines are
tested, not whether an attack is noticed once its defence is gone. Exit code 1 if a mutation survives, no longer
applies, or its tests fail without it.
"""

from __future__ import annotations

import argparse
import queue
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.mutations.copies import Copy, copied
from tests.mutations.mutation import Mutation, MutationError, checked
from tests.mutations.table import MUTATIONS
from tests.mutations.warm import HUNG

ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one mutation."""

    mutation: Mutation
    is_caught: bool
    why: str
    took_s: float


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def verdict(copy: Copy, mutation: Mutation) -> Verdict:
    """Whether every test that must fail does."""
    started_s = time.monotonic()
    run = copy.run_mutated(mutation)
    missed = [test for test in mutation.test_ids if test not in run.failed]
    words = run.output.strip().splitlines()
    if run.exit_code == HUNG or not missed:
        why = "caught"
    elif run.exit_code in (0, 1):
        why = f"SURVIVED in {', '.join(missed)}"
    else:
        why = f"pytest ended with {run.exit_code}: {words[-1] if words else ''}"
    return Verdict(mutation, why == "caught", why, time.monotonic() - started_s)


def shown(found: Verdict) -> str:
    """A line of the table."""
    return f"{found.mutation.attack:5} {found.took_s:5.0f} s  {found.mutation.what:55} {found.why}"


def verdicts(chosen: Sequence[Mutation], copies: Sequence[Copy]) -> list[Verdict]:
    """All of them, as many at a time as there are copies."""
    free: queue.SimpleQueue[Copy] = queue.SimpleQueue()
    for copy in copies:
        free.put(copy)

    def one(mutation: Mutation) -> Verdict:
        copy = free.get()
        try:
            found = verdict(copy, mutation)
        finally:
            free.put(copy)
        say(shown(found))
        return found

    with ThreadPoolExecutor(len(copies)) as pool:
        return list(pool.map(one, chosen))


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutations", description="Take defences out; see tests fail."
    )
    parser.add_argument(
        "--only", type=int, nargs="+", metavar="CLASS", help="these classes of attacks (default: all)"
    )
    parser.add_argument("--jobs", type=int, default=1, help="mutations at a time, each with a copy (default: 1)")
    options = parser.parse_args()
    chosen = [each for each in MUTATIONS if options.only is None or each.attack in options.only]
    if not chosen or not 1 <= options.jobs <= 64:
        known = ", ".join(map(str, sorted({each.attack for each in MUTATIONS})))
        parser.error(f"--only names classes of {known}, and --jobs is 1 to 64")
    try:
        for mutation in chosen:
            checked(ROOT, mutation)
    except MutationError as exc:
        say(str(exc))
        return 1
    with tempfile.TemporaryDirectory(prefix="brigade-mutations-") as folder, ExitStack() as stack:
        places = [Path(folder) / str(number) for number in range(options.jobs)]
        return judged(chosen, [stack.enter_context(copied(ROOT, place)) for place in places])


def judged(chosen: Sequence[Mutation], copies: Sequence[Copy]) -> int:
    """Without any mutation first, then with each. The exit code."""
    tests = sorted({test for mutation in chosen for test in mutation.test_ids})
    say(f"{len(chosen)} mutations, {len(copies)} at a time; first their {len(tests)} tests on the code as it is")
    sound = copies[0].run_tests(tests)
    if sound.exit_code not in (0, 1):
        say(sound.output[-4000:])
        return 1
    for test in sorted(sound.failed):
        say(f"{test} fails without any mutation: mend that first; what it should notice isn't tried")
    tried = [mutation for mutation in chosen if not sound.failed & set(mutation.test_ids)]
    say("class  time   the defence that is gone")
    found = verdicts(tried, copies)
    survived = [each for each in found if not each.is_caught]
    say(f"{len(tried) - len(survived)} of {len(chosen)} are caught; {len(chosen) - len(tried)} were not tried")
    for each in survived:
        say(f"  {each.mutation.file}: {shown(each).strip()}")
    return 1 if survived or sound.exit_code else 0


if __name__ == "__main__":
    raise SystemExit(main())
