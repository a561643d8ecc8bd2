"""A coordinator in a process of its own, as an operator starts it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

Coord = Callable[..., tuple[int, str, str]]
"""Runs a `coord` command in this process: exit code, standard output, standard error."""

ROOT = Path(__file__).parents[2]
STOP_DEADLINE_S = 20.0
LAST_LINE = "--public-url"


@dataclass(frozen=True, slots=True)
class Served:
    """A coordinator in a process of its own, and what it said at its start."""

    process: subprocess.Popen[str]
    state: Path
    said: str

    @property
    def url(self) -> str:
        return (self.state / "url").read_text().strip()

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout=STOP_DEADLINE_S)


def serve_command(state: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "coordinator", "serve", "--state", str(state), *arguments]


def environ() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("BRIGADE_")} | {
        "PYTHONWARNINGS": "error",
        "COLUMNS": "200",
    }


@contextmanager
def served(state: Path, *arguments: str, is_first: bool = True) -> Iterator[Served]:
    log = state.parent / "log"
    with log.open("a") as stderr:
        process = subprocess.Popen(
            serve_command(state, "--listen", "127.0.0.1:0", *arguments),
            cwd=ROOT,
            env=environ(),
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    try:
        assert process.stdout is not None
        said = ""
        for line in process.stdout:
            said += line
            if (LAST_LINE if is_first else "Brigade coordinator at") in line:
                break
        else:
            pytest.fail(f"the coordinator didn't start: {log.read_text()}")
        yield Served(process, state, said)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(timeout=STOP_DEADLINE_S)
        assert process.stdout is not None
        process.stdout.close()
