"""Run tests again and again in a copy: `python -m tests.mutations.warm`, lines of JSON in and out.

A line in is a list of pytest's arguments; the line out is `[exit code, output]`. Each run is a fork of this
process, which has imported the big libraries once and nothing of Brigade's, so that the fork sees the code as it is
then: most of what a run of one test takes is importing torch.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import IO

import pytest

LIBRARIES = (
    "aiohttp.web", "alembic.command", "asyncpg", "cryptography.x509", "gguf", "jinja2.sandbox", "msgspec", "numpy",
    "psutil", "rich.console", "safetensors.torch", "sqlalchemy.ext.asyncio", "structlog", "tokenizers", "torch",
    "transformers.models.auto.modeling_auto", "transformers.models.llama.modeling_llama", "typer.testing",
)  # fmt: skip
"""No plugins of pytest, which it wants to import itself."""
LONGEST_S = 600.0
"""Of one run; a defence without which tests hang that long is missed by them too."""
HUNG = -1
"""Exit code of who was ended because of that."""


def run_forked(arguments: Sequence[str], output: IO[bytes]) -> int:
    """pytest in a fork of this process; its exit code."""
    pid = os.fork()
    if pid == 0:
        os.setsid()
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
        code = int(pytest.ExitCode.INTERNAL_ERROR)
        try:
            code = pytest.main(list(arguments))
        finally:
            sys.stdout.flush()
            os._exit(code)
    ends_at_s = time.monotonic() + LONGEST_S
    while time.monotonic() < ends_at_s:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            break
        time.sleep(0.05)
    else:
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return HUNG
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # whatever the tests left behind
    return os.waitstatus_to_exitcode(status)


def main() -> None:
    for name in LIBRARIES:
        importlib.import_module(name)
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        with tempfile.TemporaryFile() as output:
            code = run_forked(json.loads(line), output)
            output.seek(0)
            said = output.read().decode(errors="replace")
        answers.write(json.dumps([code, said]) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
