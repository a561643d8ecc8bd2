"""The program `client` as a process of its own, against a scripted cluster."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.forked_program import forked_done
from tests.support.scripted_cluster import Script, ScriptedCluster, scripted_cluster
from tests.support.tiny_tokenizer import ids_of

ROOT = Path(__file__).parents[2]
DEADLINE_S = 40.0


@dataclass(frozen=True, slots=True)
class Ended:
    code: int
    out: str
    err: str


class Program:
    """The command as a process, with nothing in its environment but what a test gives."""

    def __init__(self, cluster: ScriptedCluster, folder: Path) -> None:
        self.environ = {
            "BRIGADE_URL": cluster.url,
            "BRIGADE_API_KEY": cluster.key_text,
            "BRIGADE_CACHE": str(folder / "cache"),
            "BRIGADE_STATE": str(folder / "state"),
            "PATH": "/nowhere",
        }

    async def start(self, *arguments: str) -> asyncio.subprocess.Process:
        """As a person starts it."""
        return await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "client", *arguments),
            env=self.environ,
            cwd=ROOT,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    async def run(self, *arguments: str, stdin: bytes = b"") -> Ended:
        done = await asyncio.to_thread(forked_done, "client", arguments, self.environ, stdin)
        assert b"Traceback" not in done.stderr
        return Ended(done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[ScriptedCluster]:
    async with scripted_cluster(tmp_path) as running:
        running.script = Script(answer=(*ids_of(" Paris \N{ROCKET}"), 3))
        yield running


@pytest.fixture
def program(cluster: ScriptedCluster, tmp_path: Path) -> Program:
    return Program(cluster, tmp_path)
