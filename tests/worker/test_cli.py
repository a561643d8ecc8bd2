from __future__ import annotations

import asyncio
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

import pytest
import torch

from protocol.exit_codes import EXIT_AUTH, EXIT_OK, EXIT_UNREACHABLE, EXIT_USAGE
from protocol.invite_rest import CreatedInvite, CreateInviteRequest
from tests.support.announced import announced
from tests.support.coordinators import http_session, join_secret_of, key_of, running_coordinator
from tests.support.forked_program import ForkedProgram, program_server
from worker.cli import main

pytestmark = pytest.mark.timeout(120)  # a line of a worker's may take 40 s, and some wait for two
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
        "--invite-file",
        "--state",
        "--listen",
        "--advertise",
        "--kv-memory",
        "--cache-size",
        "--blocks",
        "--compile",
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
        (["--secret", SECRET, "--kv-precision", "int4"], "--kv-precision 'int4': one of auto, bfloat16, int8"),
        (["--secret", SECRET, "--blocks", "5:2"], "--blocks: "),
        (["--secret", SECRET, "--model", "../x"], "--model: "),
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


@pytest.mark.parametrize("option", ["--secret", "--invite"])
def test_a_secret_as_an_argument_is_warned_of(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    exit_code(["join", "http://x", option, SECRET])
    shown = capsys.readouterr().err
    assert f"{option} shows in `ps`" in shown
    assert SECRET not in shown


class Process:
    """`worker join` in a process of its own."""

    def __init__(self, process: ForkedProgram, lines: asyncio.StreamReader, errors: IO[bytes]) -> None:
        self.process = process
        self._lines = lines
        self._errors = errors

    async def line(self, containing: str) -> str:
        async with asyncio.timeout(40):
            while line := (await self._lines.readline()).decode():
                if containing in line:
                    return line
        raise AssertionError(f"it ended without {containing!r}: {await self.errors()}")

    async def errors(self) -> str:
        """All that it complained of, at its end."""
        await self.code()
        self._errors.seek(0)
        return self._errors.read().decode()

    async def code(self) -> int:
        return await asyncio.to_thread(self.process.wait, 40)


def started(
    command: Sequence[str], environment: Mapping[str, str], errors: IO[bytes]
) -> tuple[ForkedProgram, IO[bytes]]:
    """The process, and where to read what it prints."""
    reading, writing = os.pipe()
    with open(os.devnull, "rb") as nothing, open(writing, "wb") as out:
        process = program_server().start("worker", command, environment, (nothing, out, errors))
    return process, open(reading, "rb")


@asynccontextmanager
async def joining(
    url: str | None, tmp_path: Path, secret: str | None, *more: str, device: str = "cpu", **environ: str
) -> AsyncIterator[Process]:
    options = ("--state", str(tmp_path / "worker"), "--precision", "float32", "--threads", "1", "--device", device)
    command = ("join", *(() if url is None else (url,)), *options, *more)
    environment = {**os.environ, **({} if secret is None else {"BRIGADE_SECRET": secret}), **environ}
    lines = asyncio.StreamReader()
    with TemporaryFile() as errors:
        process, printed = await asyncio.to_thread(started, command, environment, errors)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(lines), printed
        )
        try:
            yield Process(process, lines, errors)
        finally:
            process.kill()
            await asyncio.to_thread(process.wait)
            transport.close()


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
    async with joining("https://127.0.0.1:1", tmp_path, SECRET, "--join-timeout", "0") as worker:
        assert await worker.code() == EXIT_UNREACHABLE
        (line,) = (await worker.errors()).splitlines()
        assert line.startswith("error: nobody answers")


async def test_a_worker_waits_for_a_coordinator_that_is_away(tmp_path: Path, own_port: int) -> None:
    async with running_coordinator(tmp_path, listen_port=own_port) as coordinator:
        url, secret = coordinator.url, join_secret_of(coordinator)
    async with joining(url, tmp_path, secret) as worker:
        assert "nobody answers" in await worker.line("the coordinator is away, trying again")
        async with running_coordinator(tmp_path, listen_port=own_port):
            await worker.line("joined")


async def test_a_wrong_secret_is_one_line_and_its_exit_code(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator, joining(coordinator.url, tmp_path, SECRET) as worker:
        assert await worker.code() == EXIT_AUTH
        (line,) = (await worker.errors()).splitlines()
        assert line.startswith("error: the coordinator")


async def test_without_an_address_the_coordinator_is_found_on_the_local_network(tmp_path: Path) -> None:
    async with (
        running_coordinator(tmp_path) as coordinator,
        announced(coordinator.port) as coordinator_id,
        joining(None, tmp_path, join_secret_of(coordinator)) as worker,
    ):
        assert coordinator.url in await worker.line(f"found the coordinator {coordinator_id}")
        await worker.line("joined")


async def test_an_invite_is_all_that_is_needed(tmp_path: Path) -> None:
    async with (
        running_coordinator(tmp_path) as coordinator,
        http_session(coordinator, key_of(coordinator, "admin")) as admin,
    ):
        answer = await admin.ask("POST", "/admin/v1/invites", CreateInviteRequest())
        file = tmp_path / "invite"
        file.write_text(answer.read(CreatedInvite).invite)
        for _ in range(2):  # the second time it is used up, and this worker is known by it
            async with joining(None, tmp_path, None, "--invite-file", str(file)) as worker:
                await worker.line("joined")
                worker.process.send_signal(signal.SIGTERM)
                assert await worker.code() == EXIT_OK


def test_a_worker_that_was_given_an_address_imports_nothing_to_search_or_be_measured(tmp_path: Path) -> None:
    secret_file = tmp_path / "secret"
    secret_file.write_text(SECRET)
    place = ("--state", str(tmp_path / "state"), "--listen", "127.0.0.1", "--device", "cpu")
    command = ["join", "https://127.0.0.1:1", "--secret-file", str(secret_file), "--join-timeout", "0", *place]
    source = (
        "import sys\nfrom worker.cli import main\n"
        f"try:\n    main({command!r})\nexcept SystemExit as done:\n    print('exit', done.code)\n"
        "unneeded = {'zeroconf', 'prometheus_client', 'pydantic', 'worker.doctor'}\n"
        "print('torch' in sys.modules, sorted(unneeded & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, check=True, text=True, timeout=110)
    assert done.stdout.splitlines()[-2:] == [f"exit {EXIT_UNREACHABLE}", "True []"]
