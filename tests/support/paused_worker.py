"""`worker join` in a process of its own that stands still where it would import torch, until told to go on."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

AT_TORCH = "about to import torch"
SOURCE = f"""
import sys

class Pause:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            sys.meta_path.remove(self)
            print({AT_TORCH!r}, flush=True)
            sys.stdin.readline()

sys.meta_path.insert(0, Pause())
from worker.cli import main
main(sys.argv[1:])
"""
START_S = 60.0


class PausedWorker:
    """The process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def said(self, containing: str) -> str:
        """The next line with this in it."""
        assert self.process.stdout is not None
        async with asyncio.timeout(START_S):
            while line := (await self.process.stdout.readline()).decode():
                if containing in line:
                    return line
        raise AssertionError(f"it ended without {containing!r}: {await self.errors()}")

    def go_on(self) -> None:
        """Have it import torch."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")

    async def errors(self) -> str:
        """All that it complained of, at its end."""
        assert self.process.stderr is not None
        async with asyncio.timeout(START_S):
            return (await self.process.stderr.read()).decode()

    async def code(self) -> int:
        """Its exit code."""
        async with asyncio.timeout(START_S):
            return await self.process.wait()


@asynccontextmanager
async def paused_worker(
    state: Path, secret: str, *arguments: str, is_in_background: bool = False
) -> AsyncIterator[PausedWorker]:
    """Start one; it is killed at the end. `is_in_background`: of a script, so without SIGINT."""
    options = ("join", *arguments, "--state", str(state), "--device", "cpu", "--threads", "1")
    pipes = {"stdin": asyncio.subprocess.PIPE, "stdout": asyncio.subprocess.PIPE, "stderr": asyncio.subprocess.PIPE}
    environment = {**os.environ, "BRIGADE_SECRET": secret}
    sigint = signal.SIG_IGN if is_in_background else signal.SIG_DFL
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", SOURCE, *options),
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, sigint),
        **pipes,
    )
    try:
        yield PausedWorker(process)
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
