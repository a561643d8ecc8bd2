"""A coordinator in a process of its own: as an operator starts it, or a fork, which starts in less time."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.forked_program import ForkedProgram, program_server

Coord = Callable[..., tuple[int, str, str]]
"""Runs a `coord` command in this process: exit code, standard output, standard error."""

ROOT = Path(__file__).parents[2]
START_DEADLINE_S = 40.0
STOP_DEADLINE_S = 40.0
LAST_LINE = "--public-url"


@dataclass(frozen=True, slots=True)
class Served:
    """A coordinator in a process of its own, and what it said at its start."""

    process: subprocess.Popen[str] | ForkedProgram
    state: Path
    said: str

    @property
    def url(self) -> str:
        return (self.state / "url").read_text().strip()

    def is_listening(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", int(self.url.rpartition(":")[2]))) == 0

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


@contextmanager
def forked(state: Path, *arguments: str, is_first: bool = True) -> Iterator[Served]:
    """The same of a fork, for tests of what it does once it runs."""
    command = ("serve", "--state", str(state), "--listen", "127.0.0.1:0", *arguments)
    printed, log = state.parent / "printed", state.parent / "log"
    with open(os.devnull, "rb") as nothing, printed.open("wb") as out, log.open("ab") as errors:
        process = program_server().start("coord", command, environ(), (nothing, out, errors))
    try:
        last_line = LAST_LINE if is_first else "Brigade coordinator at"
        until_s = time.monotonic() + START_DEADLINE_S
        while last_line not in (said := printed.read_text()):
            if process.poll() is not None or time.monotonic() > until_s:
                pytest.fail(f"the coordinator didn't start: {log.read_text()}")
            time.sleep(0.05)
        yield Served(process, state, said)
    finally:
        process.kill()
        process.wait(STOP_DEADLINE_S)
