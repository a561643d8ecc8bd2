"""One target in a process of its own: `python -m tests.fuzz.child ENGINE TARGET SECONDS FOLDER`.

Prints `stat::number_of_executed_units: N` as libFuzzer does.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

from tests.fuzz.engines import fuzz_with_atheris, fuzz_with_hypothesis, instrumented, limit_address_space
from tests.fuzz.target import Target

ROOMS = ("protocol", "coordinator", "worker", "client", "jinja2", "itsdangerous", "tarfile", "yarl")


def main() -> None:
    engine, name, seconds, folder = sys.argv[1], sys.argv[2], float(sys.argv[3]), Path(sys.argv[4])
    findings, corpus = folder / "findings" / name, folder / "corpus" / name
    findings.mkdir(parents=True, exist_ok=True)
    corpus.mkdir(parents=True, exist_ok=True)
    if engine == "atheris":
        fuzz_with_atheris(instrumented(lambda: _target(name), ROOMS), seconds, findings, corpus)
        return
    target = _target(name)
    limit_address_space()
    n_run = fuzz_with_hypothesis(target, seconds, findings)
    sys.stderr.write(f"stat::number_of_executed_units: {n_run}\n")
    sys.stderr.flush()
    os._exit(0)  # taking down what was imported takes half a minute on a busy machine, and would count as hanging


def _target(name: str) -> Target:
    targets: dict[str, Target] = importlib.import_module("tests.fuzz.targets").TARGETS
    return targets[name]


if __name__ == "__main__":
    main()
