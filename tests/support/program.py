"""One of the programs, run for real to its end beside a loop that goes on."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


async def program_done(module: str, *arguments: str, **environ: str) -> tuple[int, str, str]:
    """`python -m MODULE ARGUMENTS...`: its exit code, and what it printed and complained."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", module, *arguments),
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "120", **environ},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(50):
        out, errors = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), errors.decode()
