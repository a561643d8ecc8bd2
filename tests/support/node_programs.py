"""Programs under Node, with the packages of tests/node/package-lock.json, which are installed when first needed."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

FOLDER = Path(__file__).parents[1] / "node"
LOCK = Path(__file__).parents[2] / ".cache" / "node_packages.lock"
"""Who installs; the tests that need the packages may run in several processes."""
WITHIN_S = 60.0
INSTALL_WITHIN_S = 50.0
_INSTALLED = FOLDER / "node_modules" / ".package-lock.json"
"""npm's own note of what is there."""


def installed_packages() -> None:
    """Have the packages there, from npm's cache if it has them; the test is skipped where there is no Node."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("there is no Node.js with npm on the PATH: install the packages `nodejs` and `npm`")
    LOCK.parent.mkdir(exist_ok=True)
    with FileLock(LOCK, timeout=INSTALL_WITHIN_S):
        if _is_current():
            return
        done = subprocess.run(
            [npm, "ci", "--no-audit", "--no-fund", "--prefer-offline", "--ignore-scripts"],
            cwd=FOLDER,
            capture_output=True,
            text=True,
            timeout=INSTALL_WITHIN_S,
            check=False,
        )
    assert done.returncode == 0, f"`npm ci` in {FOLDER} failed:\n{done.stderr}"


def _is_current() -> bool:
    """Whether what is installed is what the lock file says."""
    if not _INSTALLED.exists():
        return False
    wanted, there = (
        json.loads(file.read_text())["packages"] for file in (FOLDER / "package-lock.json", _INSTALLED)
    )
    return {name: package for name, package in wanted.items() if name} == there


async def node_answer(script: str, *arguments: str, **environ: str) -> Any:
    """What a script of tests/node prints, as JSON is read."""
    process = await asyncio.create_subprocess_exec(
        "node",
        *(script, *arguments),
        cwd=FOLDER,
        env=os.environ | environ,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(WITHIN_S):
            out, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, errors.decode()
    return json.loads(out)
