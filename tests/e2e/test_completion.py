"""Shells complete the three commands: bash for real, the others by the scripts that they are given."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent
DEADLINE_S = 40.0
ENVIRON = {"PATH": f"{BIN}:/usr/bin:/bin", "HOME": "/nowhere", "TERM": "dumb", "PS1": "$ ", "COLUMNS": "200"}


class Terminal:
    """An interactive bash behind a pseudo-terminal."""

    def __init__(self) -> None:
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            ["bash", "--norc", "--noprofile", "-i"],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=ENVIRON,
            start_new_session=True,
        )
        os.close(slave)

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def wait_for(self, text: str) -> None:
        shown, until = "", time.monotonic() + DEADLINE_S
        while text not in shown:
            if not select.select([self._master], [], [], until - time.monotonic())[0]:
                pytest.fail(f"{text!r} didn't come; bash shows {shown!r}")
            shown += os.read(self._master, 4096).decode(errors="replace")

    def close(self) -> None:
        self.process.kill()
        self.process.wait(DEADLINE_S)
        os.close(self._master)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    opened = Terminal()
    yield opened
    opened.close()


def test_tab_completes_coords_commands_in_bash(terminal: Terminal) -> None:
    terminal.type("""eval "$(coord --show-completion)"; printf '%s-%s\\n' all set\n""")
    terminal.wait_for("all-set")
    terminal.type("coord ke\t")
    terminal.wait_for("coord key ")
    terminal.type("cr\t")
    terminal.wait_for("eate ")


@pytest.mark.parametrize(
    ("words", "expected"),
    [("worker jo", "join"), ("worker join --sho", "--show-config"), ("client gen", "generate")],
)
def test_options_and_commands_of_the_others_are_completed_too(words: str, expected: str) -> None:
    program = words.split()[0]
    asked = {
        f"_{program.upper()}_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    assert output_of(program, asked).split() == [expected]


@pytest.mark.parametrize("program", ["worker", "client"])
@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_scripts_of_theirs(program: str, shell: str) -> None:
    asked = {f"_{program.upper()}_COMPLETE": f"source_{shell}"}
    script = output_of(program, asked)
    assert f"_{program.upper()}_COMPLETE=complete_{shell}" in script


def output_of(program: str, environ: dict[str, str]) -> str:
    done = subprocess.run(
        [BIN / program], env=ENVIRON | environ, capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout
