"""One of the programs, run to its end beside a loop that goes on: forked, or started anew."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from tests.support.forked_program import forked_done

ROOT = Path(__file__).resolve().parents[2]


async def program_done(program: str, *arguments: str, **environ: str) -> tuple[int, str, str]:
    """`coord`, `worker` or `client` with these arguments: its exit code, and what it printed and complained."""
    done = await asyncio.to_thread(forked_done, program, arguments, _environment(environ))
    return done.returncode, done.stdout.decode(), done.stderr.decode()


async def module_done(module: str, *arguments: str, **environ: str) -> tuple[int, str, str]:
    """The same of `python -m MODULE ARGUMENTS...`, which imports all that it needs itself."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", module, *arguments),
        cwd=ROOT,
        env=_environment(environ),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(50):
            out, errors = await process.communicate()
    finally:
        if process.returncode is None:  # else it is left to the garbage collector, in some later test
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return process.returncode, out.decode(), errors.decode()


def _environment(environ: dict[str, str]) -> dict[str, str]:
    return {**os.environ, "COLUMNS": "120", **environ}
