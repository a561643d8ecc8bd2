"""What commands import: help, completion and commands that only ask a coordinator must not wait for the rest."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from protocol.api_key import new_api_key

DATABASE = {"sqlalchemy", "aiosqlite", "asyncpg", "alembic"}
SERVER = {"aiohttp.web", "zeroconf", "prometheus_client", "uvloop"}
MODEL = {"torch", "transformers", "safetensors", "llguidance", "numpy"}
REQUESTS = {"aiohttp", "structlog"}
TEXTS = {"tokenizers", "jinja2", "prompt_toolkit"}
NOBODY_THERE = "https://127.0.0.1:1"
UNREACHABLE = 3

_REPORT = """
import json, sys
from {module} import main
found = []
for arguments in {commands!r}:
    try:
        code = main(arguments.split())
    except SystemExit as exc:
        code = exc.code
    found.append([code or 0, sorted(sys.modules)])
print(json.dumps(found), file=sys.stderr)
"""


def _imported(module: str, *commands: str, **environ: str) -> dict[str, tuple[int, set[str]]]:
    """Exit code and imported modules after each of these commands, run one after the other in one new process."""
    program = _REPORT.format(module=module, commands=commands)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environ, timeout=50, check=False
    )
    found = json.loads(done.stderr.splitlines()[-1])
    return {command: (code, set(names)) for command, (code, names) in zip(commands, found, strict=True)}


@pytest.mark.parametrize(
    ("module", "commands"),
    [
        ("coordinator.cli", ["", "serve", "status", "key create", "model add", "backup", "restore", "doctor"]),
        ("worker.cli", ["", "join", "doctor"]),
        ("client.cli", ["", "generate", "chat", "models", "serve", "bench", "embed"]),
    ],
)
def test_help_imports_nothing_that_only_work_needs(module: str, commands: list[str]) -> None:
    helps = [f"{command} --help".strip() for command in commands]
    for command, (code, imported) in _imported(module, *helps).items():
        assert (command, code) == (command, 0)
        assert (command, imported & (DATABASE | SERVER | MODEL | REQUESTS | TEXTS)) == (command, set())


def test_commands_that_ask_a_coordinator_import_neither_its_database_nor_its_server() -> None:
    key = new_api_key("admin", "0" * 64).text()
    commands = ["status", "plan", "key list", "worker list", "model list", "trust list", "audit", "settings show"]
    found = _imported("coordinator.cli", *commands, BRIGADE_URL=NOBODY_THERE, BRIGADE_ADMIN_KEY=key)
    for command, (code, imported) in found.items():
        assert (command, code) == (command, UNREACHABLE)
        assert (command, imported & (DATABASE | SERVER | MODEL | TEXTS)) == (command, set())


def test_a_client_imports_neither_a_server_nor_torch() -> None:
    key = new_api_key("client", "0" * 64).text()
    found = _imported(
        "client.cli",
        *("models --connect-timeout 0", "generate --connect-timeout 0 Hello"),
        BRIGADE_URL=NOBODY_THERE,
        BRIGADE_API_KEY=key,
    )
    for command, (code, imported) in found.items():
        assert (command, code) == (command, UNREACHABLE)
        assert (command, imported & (DATABASE | SERVER | (MODEL - {"numpy"}))) == (command, set())
