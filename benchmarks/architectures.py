"""Every causal architecture that transformers has, tiny: does a cluster give what transformers gives?

    python -m benchmarks.architectures [ARCHITECTURE ...] [--json FILE] [--docs FILE]

Each is tried in a process of its own, one after the other, by one thread: about two minutes for all.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path

import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from benchmarks.architecture_trial import Outcome, Verdict, tried

TRIAL_S = 120.0
MEMORY_BYTES = 3 * 10**9
TABLE = "## The table"
"""The line of a document behind which the table stands, to its end."""
_IN_WORDS: dict[Verdict, str] = {
    "equal": "runs",
    "alone": "runs, sessions one at a time",
    "refused": "refused",
    "wrong": "**other results**",
    "fails": "**fails**",
    "untried": "not tried",
}


def main() -> int:
    """Try them, print what comes out; 1 if anything is neither as it should be nor refused."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="ARCHITECTURE", help="configs' types; all where none is named")
    parser.add_argument("--json", type=Path, help="a file to write what came out to")
    parser.add_argument("--docs", type=Path, help=f"a document to put the table in, behind its line {TABLE!r}")
    options = parser.parse_args()
    outcomes = [_apart(name) for name in options.names or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)]
    if options.json:
        options.json.write_text(json.dumps([asdict(one) for one in outcomes], indent=1) + "\n")
    if options.docs:
        before, line, _ = options.docs.read_text().partition(f"{TABLE}\n")
        options.docs.write_text(f"{before}{line}\n{table(outcomes)}")
    counts = Counter(one.verdict for one in outcomes)
    print(", ".join(f"{count} {_IN_WORDS[verdict]}" for verdict, count in counts.most_common()))
    return int(counts["wrong"] + counts["fails"] > 0)


def table(outcomes: Sequence[Outcome]) -> str:
    """The outcomes as a table in Markdown, a row each."""
    rows = [
        f"| `{one.model_type}` | {_IN_WORDS[one.verdict]} | {_note(one).replace('|', '/')} |" for one in outcomes
    ]
    heading = f"transformers {transformers.__version__}:\n\n| `model_type` | | |\n|---|---|---|\n"
    return heading + "\n".join(rows) + "\n"


def _note(outcome: Outcome) -> str:
    """The reason, without what is said of every refusal."""
    if outcome.verdict == "alone":
        return ""
    return " ".join(outcome.said.split("; Brigade")[0].split())


def _apart(model_type: str) -> Outcome:
    """Try it in a process of its own, which may crash, hang, or want too much memory."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    with tempfile.TemporaryDirectory(prefix="brigade-architectures-") as folder:
        process = context.Process(target=_try, args=(model_type, Path(folder), theirs))
        process.start()
        theirs.close()
        outcome = Outcome(model_type=model_type, verdict="untried", said=f"no end after {TRIAL_S:.0f} s")
        try:
            if ours.poll(TRIAL_S):
                outcome = ours.recv()
        except EOFError:
            outcome = Outcome(model_type=model_type, verdict="untried", said="the process died")
        process.kill()
        process.join()
    differs = f"{outcome.largest_difference:.0e}" if outcome.verdict in ("equal", "alone", "wrong") else ""
    print(f"{model_type:28} {_IN_WORDS[outcome.verdict]:30} {differs:6} {outcome.said}", flush=True)
    return outcome


def _try(model_type: str, folder: Path, answer: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    answer.send(tried(model_type, folder))


if __name__ == "__main__":
    sys.exit(main())
