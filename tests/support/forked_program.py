"""The three programs as forks of one process that has imported everything: see `program_server`. For Linux."""

from __future__ import annotations

import atexit
import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO

from demo.local_cluster import COMMAND_WITHIN_S, LocalCluster

ROOT = Path(__file__).resolve().parents[2]
READY_WITHIN_S = 600.0
ANSWER_WITHIN_S = 120.0
READY = b"ready"
"""What the server says first."""
_PR_SET_CHILD_SUBREAPER = 36


class ForkedProgram:
    """A running program that was forked for us. What can be done to it is what `subprocess.Popen` offers."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._descriptor = os.pidfd_open(pid)
        self._one_at_a_time = threading.Lock()

    def __del__(self) -> None:
        os.close(self._descriptor)

    def poll(self) -> int | None:
        return self._reaped() if self._has_ended(0.0) else None

    def wait(self, timeout: float | None = None) -> int:
        if not self._has_ended(timeout):
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
        return self._reaped()

    def send_signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._descriptor, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _has_ended(self, within_s: float | None) -> bool:
        poller = select.poll()
        poller.register(self._descriptor, select.POLLIN)
        return self.returncode is not None or bool(poller.poll(None if within_s is None else within_s * 1000))

    def _reaped(self) -> int:
        with self._one_at_a_time:
            if self.returncode is None:
                self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode


class ProgramServer:
    """The process that forks, once it can. It ends with this one: nobody holds the other end of its socket then."""

    def __init__(self) -> None:
        if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "this process can't take orphans in")
        self._one_at_a_time = threading.Lock()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, "-m", "tests.support.program_server", str(theirs.fileno())]
            self._process = subprocess.Popen(
                command, cwd=ROOT, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL
            )
        self._socket.settimeout(READY_WITHIN_S)
        assert self._socket.recv(64) == READY, f"{command} ended with exit code {self._process.wait()}"
        self._socket.settimeout(ANSWER_WITHIN_S)

    def start(
        self, program: str, arguments: Sequence[str], environment: Mapping[str, str], files: Sequence[IO[bytes]]
    ) -> ForkedProgram:
        """Fork one of the programs; `files` become its standard input, output and error."""
        request = {
            "program": program,
            "arguments": arguments,
            "environment": dict(environment),
            "folder": str(Path.cwd()),
        }
        with self._one_at_a_time:
            socket.send_fds(self._socket, [json.dumps(request).encode()], [file.fileno() for file in files])
            return ForkedProgram(int(self._socket.recv(64)))

    def close(self) -> None:
        """Have it end."""
        self._socket.close()
        self._process.wait()


@cache
def program_server() -> ProgramServer:
    """The only one of this process, started when first asked for: that takes seconds, minutes where others compute.

    Where tests run in several processes, `tests/conftest.py` asks before the clock of any test runs.
    """
    server = ProgramServer()
    atexit.register(server.close)
    return server


def forked_done(
    program: str, arguments: Sequence[str], environment: Mapping[str, str], stdin: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    """Run one of the programs to its end, as `subprocess.run` does."""
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        given.write(stdin)
        given.seek(0)
        process = program_server().start(program, arguments, environment, (given, out, errors))
        try:
            code = process.wait(COMMAND_WITHIN_S)
        finally:
            process.kill()
            process.wait()
        out.seek(0)
        errors.seek(0)
        return subprocess.CompletedProcess([program, *arguments], code, stdout=out.read(), stderr=errors.read())


class ForkedCommands(LocalCluster):
    """A cluster whose commands start in no time; what runs for long is started as an operator does."""

    def run(self, program: str, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return forked_done(program, arguments, self.environment, stdin)


class ForkedCluster(ForkedCommands):
    """A cluster all of whose programs start in no time."""

    def _launch(self, program: str, arguments: Sequence[str], log: IO[bytes]) -> ForkedProgram:
        with open(os.devnull, "rb") as nothing:
            return program_server().start(program, arguments, self.environment, (nothing, log, log))
