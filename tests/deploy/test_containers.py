"""Dockerfile and compose file, as far as they can be looked at without docker: what they name is there and fits."""

from __future__ import annotations

import re
import shlex
import socket
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from tests.support.command_lines import APPS, wrong_with
from worker.config import WorkerConfig

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
HEALTHCHECK = ROOT / "deploy/docker/healthcheck.py"


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines]


def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
    return found


def check_command(words: list[str]) -> None:
    assert wrong_with(words, is_whole=True) == ""


def test_the_image_is_made_of_what_is_there() -> None:
    packages = {name.split(".")[0] for name in PROJECT["tool"]["setuptools"]["packages"]}
    copied: set[str] = set()
    for name, value in instructions():
        if name == "COPY" and not value.startswith("--from"):
            copied |= set(value.split()[:-1])
    assert all((ROOT / source).exists() for source in copied)
    assert packages <= copied
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert allowed == copied


def test_the_image_runs_as_nobody_on_a_pinned_python_that_we_support() -> None:
    found = instructions()
    bases = {value.split()[0] for name, value in found if name == "FROM"}
    (base,) = bases
    version = re.fullmatch(r"python:(3\.\d+)-slim-\w+@sha256:[0-9a-f]{64}", base)
    assert version
    assert float(version[1].removeprefix("3.")) >= float(PROJECT["project"]["requires-python"].removeprefix(">=3."))
    users = [value for name, value in found if name == "USER"]
    assert users[-1].split(":")[0].isdigit()
    assert users[-1].split(":")[0] != "0"
    assert any(name == "HEALTHCHECK" for name, _ in found)
    (command,) = (value for name, value in found if name == "CMD")
    check_command(yaml.safe_load(command))


def test_every_service_is_one_of_our_commands_and_carries_no_secret() -> None:
    found = compose()
    assert sorted(found["services"]) == ["coordinator", "gateway", "worker-1", "worker-2"]
    for service in found["services"].values():
        check_command(service["command"])
        assert service["image"] == f"brigade:{PROJECT['project']['version']}"
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert {volume.split(":")[0] for volume in service["volumes"]} <= set(found["volumes"])
        assert set(service.get("secrets", ())) <= set(found["secrets"])
        for published in service.get("ports", ()):
            assert published.startswith("127.0.0.1:")
        assert not re.search(r"(?i)secret|key|password|token", str(service.get("environment")))
    for secret in found["secrets"].values():
        assert secret["file"].startswith("./secrets/")
    assert "secrets/" in (ROOT / ".gitignore").read_text().split()


def test_workers_have_the_time_that_a_drain_takes() -> None:
    defaults = WorkerConfig.__dataclass_fields__
    drain_s = defaults["drain_s"].default + defaults["handover_s"].default
    grace = compose()["services"]["worker-1"]["stop_grace_period"]
    assert float(grace.removesuffix("s")) >= drain_s + 10


def test_what_compose_tells_people_to_type_are_commands() -> None:
    text = (ROOT / "compose.yaml").read_text()
    said = re.findall(r"docker compose exec (?:-T )?coordinator (coord [^|\n]+)", text)
    assert len(said) == 2
    for line in said:
        group, command = shlex.split(line)[1:3]
        tree: Any = typer.main.get_command(APPS["coord"])
        assert command in tree.commands[group].commands


@pytest.mark.parametrize(
    ("command", "default"),
    [
        ("coord serve --listen {}", 7400),
        ("/sbin/docker-init -- /opt/brigade/bin/worker join x --listen=[::]:{}", 7500),
    ],
)
def test_the_health_check_asks_the_port_that_the_command_names(
    tmp_path: Path, command: str, default: int, own_port: int
) -> None:
    listen = command.format(own_port if "::" in command else f"0.0.0.0:{own_port}")
    with socket.create_server(("127.0.0.1", own_port)):
        assert checked(tmp_path, listen) == (0, "")
    code, said = checked(tmp_path, listen)
    assert code == 1
    assert f"doesn't answer on port {own_port}" in said
    assert str(default) in (ROOT / "Dockerfile").read_text()


def checked(folder: Path, command: str) -> tuple[int, str]:
    cmdline = folder / "cmdline"
    cmdline.write_bytes(b"\0".join(word.encode() for word in command.split()) + b"\0")
    done = subprocess.run(
        [sys.executable, HEALTHCHECK, cmdline], capture_output=True, text=True, timeout=50, check=False
    )
    return done.returncode, done.stderr
