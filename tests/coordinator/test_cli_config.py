from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from tests.support.coord_process import Coord, served

SECRET = "a-secret-of-this-test-that-is-long-enough-0123456789"


def written(path: Path, text: str, mode: int = 0o644) -> str:
    path.write_text(text)
    path.chmod(mode)
    return str(path)


def test_a_coordinator_is_told_by_its_file_and_says_so(
    coord: Coord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = tmp_path / "state"
    text = f'[coordinator]\nstate = "state"\nplacement = "spread"\nsecret = "{SECRET}"\n'
    file = written(tmp_path / "brigade.toml", text, 0o600)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(20)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        with served(state, "--config", file) as running:
            assert manager.recv(100) == b"READY=1"
            code, out, _ = coord("settings", "show", "--json", "--config", file)  # which has the state folder
            placement = next(each for each in json.loads(out)["settings"] if each["name"] == "placement")
            _, secret, _ = coord("secret", "show", "--config", file)
            assert running.stop() == 0
            assert manager.recv(100) == b"STOPPING=1"
    assert (code, placement["value"], placement["source"]) == (0, "spread", "given")
    assert f"from placement in {file}, line 3: start the coordinator without it" in placement["where"]
    assert f"given by secret in {file}, line 4, which goes before the state folder's" in secret
    assert f"settings from {file}" in (tmp_path / "log").read_text()
    assert SECRET not in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[coordinator]\nlissten = 'x'\n", "line 2: [coordinator] has no key 'lissten'; did you mean 'listen'?"),
        ("[coordinator]\naudit_share = 0.9\n", "--audit-share is 0.9; it must be between 0 (no audits) and 0.5"),
        ("[coordinator]\nlisten = 7400\n", "line 2: [coordinator] listen is a number; it must be a string"),
        (f"[worker]\nsecret = '{SECRET}'\n", "line 2: [worker] secret is a secret, and the file has mode 0644"),
    ],
)
def test_what_a_file_says_wrong_is_one_line(coord: Coord, tmp_path: Path, text: str, says: str) -> None:
    code, out, err = coord("serve", "--config", written(tmp_path / "x.toml", text))
    assert (code, out) == (2, "")
    lines = [line for line in err.splitlines() if not line.startswith("settings from")]
    assert len(lines) == 1
    assert says in lines[0]
    assert str(tmp_path / "x.toml") in lines[0]
    assert SECRET not in err


def test_a_state_folder_on_the_command_line_goes_before_the_files_address(
    coord: Coord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "[coordinator]\nurl = 'https://elsewhere:1'\nadmin-key-file = 'k'\nstate = 's'\n"
    monkeypatch.setenv("BRIGADE_CONFIG", written(tmp_path / "x.toml", text))
    _, all_of_it, _ = coord("status", "--show-config")
    assert "https://elsewhere:1" in all_of_it
    _, shown, _ = coord("status", "--show-config", "--state", "/other")
    assert 'state = "/other"  # --state' in shown
    assert "elsewhere" not in shown
    assert "\nadmin-key-file" not in shown
