"""A program on a pseudo-terminal of its own: typed at, and read as a person would.

async with on_terminal(environ, "-m", "client", "chat") as chat:
    chat.type("hello\\r")
    await chat.until("first after")
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import shutil
import struct
import sys
import termios
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 40.0
CTRL_C, CTRL_D = "\x03", "\x04"
_WHERE, _HERE = b"\x1b[6n", "\x1b[1;1R"
"""How a program asks where the cursor is, and what a terminal says: here always at its beginning."""
_CONTROLS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07|\x1b[=>]|\r")


class Terminal:
    """What was shown, without what moved the cursor; `until` reads on from where it last stopped."""

    def __init__(self, descriptor: int, process: asyncio.subprocess.Process) -> None:
        self._descriptor = descriptor
        self._process = process
        self._bytes = b""
        self._n_read = 0
        self._news = asyncio.Event()
        asyncio.get_running_loop().add_reader(descriptor, self._read)

    @property
    def shown(self) -> str:
        return _CONTROLS.sub("", self._bytes.decode(errors="replace"))

    def type(self, keys: str) -> None:
        os.write(self._descriptor, keys.encode())

    async def until(self, words: str) -> str:
        """Wait until these words are shown; what came since the last wait, up to them."""
        try:
            async with asyncio.timeout(DEADLINE_S):
                while (found := self.shown.find(words, self._n_read)) < 0:
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError as exc:
            raise AssertionError(f"{words!r} isn't in {self.shown[self._n_read :]!r}") from exc
        begin, self._n_read = self._n_read, found + len(words)
        return self.shown[begin : self._n_read]

    def terminate(self) -> None:
        self._process.terminate()

    async def ended(self) -> int:
        """Wait for the end; the exit code."""
        async with asyncio.timeout(DEADLINE_S):
            return await self._process.wait()

    def _read(self) -> None:
        try:
            data = os.read(self._descriptor, 2**16)
        except OSError:  # Linux' way to say that nobody has the other end any more
            data = b""
        for _ in range(data.count(_WHERE)):
            self.type(_HERE)
        if not data:
            asyncio.get_running_loop().remove_reader(self._descriptor)
        self._bytes += data
        self._news.set()


@asynccontextmanager
async def on_terminal(environ: Mapping[str, str], *arguments: str) -> AsyncIterator[Terminal]:
    """Python with these arguments; killed at the end if it is still there."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    setsid = shutil.which("setsid")
    assert setsid is not None, "util-linux has it"
    try:
        process = await asyncio.create_subprocess_exec(
            *(setsid, "--ctty", sys.executable, *arguments),
            env=dict(environ) | {"TERM": "xterm"},
            cwd=ROOT,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
    finally:
        os.close(theirs)
    terminal = Terminal(ours, process)
    try:
        yield terminal
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        asyncio.get_running_loop().remove_reader(ours)
        os.close(ours)
