from __future__ import annotations

import asyncio
import os
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import torch

from protocol.errors import EXIT_AUTH, EXIT_OK, EXIT_UNREACHABLE, EXIT_USAGE
from tests.support.coordinators import join_secret_of, running_coordinator
from worker.cli import main

ROOT = Path(__file__).resolve().parents[2]
SECRET = secrets.token_urlsafe(32)


def exit_code(arguments: Sequence[str]) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("BRIGADE_SECRET", raising=False)
    monkeypatch.setenv("BRIGADE_WORKER_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("COLUMNS", "200")


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["--version"]) == EXIT_OK
    assert capsys.readouterr().out.startswith("worker ")
    assert exit_code(["join", "--help"]) == EXIT_OK
    shown = capsys.readouterr().out
    for option in (
        "--secret-file",
        "--state",
        "--listen",
        "--advertise",
        "--kv-memory",
        "--cache-size",
        "--blocks",
    ):
        assert option in shown


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "BRIGADE_SECRET"),
        (["--secret", "changeme"], "at most"),
        (["--secret", SECRET, "--memory", "lots"], "--memory"),
        (["--secret", SECRET, "--device", "tpu"], "--device"),
        (["--secret", SECRET, "--precision", "int3"], "--precision"),
        (["--secret", SECRET, "--blocks", "5:2"], "block range"),
        (["--secret", SECRET, "--model", "../x"], "model's name"),
        (["--secret", SECRET, "--listen", "a/b"], "--listen"),
        (["--secret", SECRET, "--chunk-tokens", "0"], "--chunk-tokens"),
    ],
)
def test_bad_options_are_one_line_and_usage(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(["join", "https://127.0.0.1:1", *arguments]) == EXIT_USAGE
    shown = capsys.readouterr().err
    errors = [line for line in shown.splitlines() if not line.startswith("warning:")]
    assert len(errors) == 1
    assert errors[0].startswith("error: ")
    assert says in errors[0]
    assert SECRET not in shown


def test_plain_http_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["join", "http://127.0.0.1:1", "--secret", SECRET]) == EXIT_USAGE
    assert "TLS only" in capsys.readouterr().err


def test_a_secret_as_an_argument_is_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    exit_code(["join", "http://x", "--secret", SECRET])
    assert "shows in `ps`" in capsys.readouterr().err


class Process:
    """`python -m worker join` for real."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def line(self, containing: str) -> str:
        assert self.process.stdout is not None
        async with asyncio.timeout(40):
            while line := (await self.process.stdout.readline()).decode():
                if containing in line:
                    return line
        raise AssertionError(f"it ended without {containing!r}: {await self.errors()}")

    async def errors(self) -> str:
        assert self.process.stderr is not None
        return (await self.process.stderr.read()).decode()

    async def code(self) -> int:
        return await asyncio.wait_for(self.process.wait(), 40)


@asynccontextmanager
async def joining(
    url: str, tmp_path: Path, secret: str, *, device: str = "cpu", **environ: str
) -> AsyncIterator[Process]:
    options = ("--state", str(tmp_path / "worker"), "--precision", "float32", "--threads", "1", "--device", device)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "worker", "join", url, *options),
        cwd=ROOT,
        env={**os.environ, "BRIGADE_SECRET": secret, **environ},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield Process(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains_and_exits_0(tmp_path: Path, number: signal.Signals) -> None:
    async with running_coordinator(tmp_path) as coordinator:
        secret = join_secret_of(coordinator)
        async with joining(coordinator.url, tmp_path, secret) as worker:
            await worker.line("joined")
            worker.process.send_signal(number)
            await worker.line("left")
            assert await worker.code() == EXIT_OK
            assert secret not in await worker.errors()


@pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU of this machine is used")
async def test_a_gpu_that_is_left_unused_is_warned_of_at_the_start(tmp_path: Path) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho NVIDIA H100\n")
    tool.chmod(0o700)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    async with joining("https://127.0.0.1:1", tmp_path, SECRET, device="auto", PATH=path) as worker:
        warning = await worker.line("WARNING")
        assert "NVIDIA H100" in warning
        assert "pip install" in warning


async def test_nobody_there_is_one_line_and_its_exit_code(tmp_path: Path) -> None:
    async with joining("https://127.0.0.1:1", tmp_path, SECRET) as worker:
        assert await worker.code() == EXIT_UNREACHABLE
        (line,) = (await worker.errors()).splitlines()
        assert line.startswith("error: nobody answers")


async def test_a_wrong_secret_is_one_line_and_its_exit_code(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator, joining(coordinator.url, tmp_path, SECRET) as worker:
        assert await worker.code() == EXIT_AUTH
        (line,) = (await worker.errors()).splitlines()
        assert line.startswith("error: the coordinator")
