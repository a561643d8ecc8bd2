"""Class 4. Defence: `checked_secret` wherever a secret comes in; the program doesn't start, and says why."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from protocol.errors import ConfigError
from protocol.exit_codes import EXIT_USAGE
from tests.support.coord_process import ROOT, environ, serve_command
from tests.support.coordinators import http_session, running_coordinator
from tests.support.forked_program import forked_done
from tests.support.joining import WorkerKey, proven_join

WEAK = ("", "   \n", "changeme", "brigade", "a" * 64, "0123456789" * 7, "correct horse battery staple")


@pytest.mark.parametrize("weak", WEAK)
async def test_a_state_folder_whose_secret_was_weakened_keeps_it_shut(tmp_path: Path, weak: str) -> None:
    """Fails if the stored secret isn't checked again (a peer's empty token let everybody in, with a warning)."""
    async with running_coordinator(tmp_path):
        pass
    (tmp_path / "state" / "join-secret").write_text(weak)
    with pytest.raises(ConfigError, match=r"join secret|join-secret"):
        async with running_coordinator(tmp_path):
            pass


@pytest.mark.parametrize("guess", WEAK)
async def test_guesses_do_not_get_in(tmp_path: Path, guess: str) -> None:
    """Fails if an empty or default secret is ever the one in force."""
    async with running_coordinator(tmp_path) as coordinator, http_session(coordinator) as http:
        proven = await proven_join(http, coordinator, WorkerKey(), secret=guess or " ")
        assert (await http.ask("POST", "/v1/join", proven.body, headers=proven.headers())).status == 401


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        arguments,
        cwd=ROOT,
        env=environ() | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=40,
    )


@pytest.mark.parametrize("program", ["coord", "worker"])
@pytest.mark.parametrize("weak", ["", "changeme"])
def test_both_programs_refuse_to_start_with_it(tmp_path: Path, program: str, weak: str) -> None:
    """Fails if a set but empty variable counts as "none given", or a weak one only warns."""
    state = tmp_path / "state"
    command = {
        "coord": serve_command(state, "--listen", "127.0.0.1:0"),
        "worker": [sys.executable, "-m", "worker", "join", "https://127.0.0.1:1", "--state", str(state)],
    }[program]
    file = tmp_path / "secret"
    file.write_text(weak)
    from_file = forked_done(program, [*command[3:], "--secret-file", str(file)], environ())
    from_variable = run(*command, BRIGADE_SECRET=weak)
    for code, said in (
        (from_file.returncode, from_file.stderr.decode()),
        (from_variable.returncode, from_variable.stderr),
    ):
        assert code == EXIT_USAGE, said
        assert said.count("error: the join secret") == 1
    assert not state.exists()
