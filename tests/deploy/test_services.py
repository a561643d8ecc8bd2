"""Service files of systemd and launchd: they start what there is, and give it the time that it takes to stop."""

from __future__ import annotations

import plistlib
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer

import client.cli
import coordinator.cli
import worker.cli
from client.gateway.config import DEFAULT_STOP_S
from coordinator.app import SHUTDOWN_S
from protocol.exit_codes import EXIT_AUTH, EXIT_CANCELLED, EXIT_USAGE, EXIT_VERSION
from worker.config import WorkerConfig

ROOT = Path(__file__).parents[2]
UNITS = sorted((ROOT / "deploy/systemd").glob("*.service"))
PLISTS = sorted((ROOT / "deploy/launchd").glob("*.plist"))
APPS = {"coord": coordinator.cli.app, "worker": worker.cli.app, "client": client.cli.app}
_DEFAULTS = {each.name: each.default for each in fields(WorkerConfig)}
STOP_S = {
    "coordinator": SHUTDOWN_S,
    "worker": _DEFAULTS["drain_s"] + _DEFAULTS["handover_s"],
    "gateway": DEFAULT_STOP_S,
}


def settings_of(unit: Path) -> Iterator[tuple[str, str]]:
    for line in unit.read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            name, _, value = line.partition("=")
            yield name, value


def names(path: Path) -> str:
    """`brigade-worker.service`, `brigade.worker.plist`: worker."""
    return path.stem.removeprefix("brigade")[1:]


def check_starts(command: list[str]) -> None:
    """There is such a command, with such options."""
    assert command[0].startswith("/opt/brigade/bin/")
    tree: Any = typer.main.get_command(APPS[Path(command[0]).name])
    options = {name for parameter in tree.commands[command[1]].params for name in parameter.opts}
    assert {word for word in command[2:] if word.startswith("--")} <= options


@pytest.mark.parametrize("unit", UNITS, ids=names)
def test_units_start_our_programs_confined_and_without_secrets_on_the_command_line(unit: Path) -> None:
    pairs = list(settings_of(unit))
    found = dict(pairs)
    check_starts(found["ExecStart"].split())
    assert "--secret " not in found["ExecStart"]
    assert found.get("DynamicUser") == "yes" or found["User"] == "brigade"
    for name, value in {"ProtectSystem": "strict", "NoNewPrivileges": "yes", "CapabilityBoundingSet": ""}.items():
        assert found[name] == value
    assert found["Type"] == "notify"
    assert found["Restart"] == "on-failure"
    assert found["RestartPreventExitStatus"].split() == [str(EXIT_USAGE), str(EXIT_AUTH), str(EXIT_VERSION)]
    assert float(found["TimeoutStopSec"]) >= STOP_S[names(unit)] + 10
    if names(unit) == "worker":
        assert found["SuccessExitStatus"] == str(EXIT_CANCELLED), "stopped while it starts"


@pytest.mark.parametrize("unit", UNITS, ids=names)
def test_systemd_finds_nothing_wrong_with_units(unit: Path, tmp_path: Path) -> None:
    verifier = shutil.which("systemd-analyze")
    if verifier is None:
        pytest.skip("there is no systemd-analyze here")
    program = dict(settings_of(unit))["ExecStart"].split()[0]
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text().replace(program, sys.executable))  # it wants programs that are there
    done = subprocess.run([verifier, "verify", copy], capture_output=True, text=True, timeout=50, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("plist", PLISTS, ids=names)
def test_property_lists_start_our_programs(plist: Path) -> None:
    ET.fromstring(plist.read_bytes())  # plistlib alone lets wrong comments pass
    found = plistlib.loads(plist.read_bytes())
    assert found["Label"] == plist.stem
    check_starts(found["ProgramArguments"])
    assert found["UserName"] == "_brigade"
    assert found["KeepAlive"] == {"SuccessfulExit": False}
    assert found["Umask"] == 0o077
    assert found["ExitTimeOut"] >= STOP_S[names(plist)] + 10
    assert found["EnvironmentVariables"]["BRIGADE_CONFIG"] == "/etc/brigade/brigade.toml"
