"""`client generate` that is stopped, runs out of time, or loses a worker: what it says, and what it frees."""

from __future__ import annotations

import asyncio
import json
import signal
import sys

import pytest

from protocol.errors import ErrorBody
from tests.support.client_program import DEADLINE_S, ROOT, Program, cluster, program
from tests.support.scripted_cluster import Script, ScriptedCluster
from tests.support.tiny_tokenizer import ids_of

__all__ = ["cluster", "program"]


async def test_a_deadline_is_exit_code_10(program: Program, cluster: ScriptedCluster) -> None:
    cluster.script = Script(answer=tuple(ids_of("abc")), stop_short=True)
    assert (await program.run("generate", "x", "--timeout", "0.5")).code == 10


@pytest.mark.parametrize("is_json", [False, True])
async def test_a_failover_is_told_on_standard_error_and_the_text_is_whole(
    program: Program, cluster: ScriptedCluster, is_json: bool
) -> None:
    cluster.attempts = [Script(answer=tuple(ids_of(" Par")), drops_connection=True)]
    cluster.script = Script(answer=tuple(ids_of("is")), finish="length")
    ended = await program.run("generate", "x", *(["--json"] if is_json else []))
    tail = cluster.workers[1][0]
    assert ended.code == 0
    assert ended.err.startswith(f"worker {tail} went away after 4 tokens; going on by another route\n")
    if is_json:
        *tokens, last = [json.loads(line) for line in ended.out.splitlines()]
        assert "".join(token["text"] for token in tokens) == " Paris"
        assert (last["done"]["text"], last["done"]["failovers"]) == (" Paris", 1)
    else:
        assert ended.out == " Paris\n"
        assert ", 1 failover, via " in ended.err


async def test_ctrl_c_in_a_wait_says_how_far_it_came_and_frees_the_workers(
    program: Program, cluster: ScriptedCluster
) -> None:
    async def lose_the_blocks() -> None:
        cluster.has_route.clear()

    cluster.no_route = ErrorBody(code="model_loading", message="blocks 1:10 are \x1b[2J loading on w-b")
    failure = ErrorBody(code="overloaded", message="full")
    cluster.attempts = [Script(answer=tuple(ids_of("abc")), on_answered=lose_the_blocks, ends_with=failure)]
    process = await program.start("generate", "x")
    assert process.stderr is not None
    async with asyncio.timeout(DEADLINE_S):
        assert b"failed (overloaded) after 3 tokens" in await process.stderr.readline()
        assert (await process.stderr.readline()).decode() == "waiting: blocks 1:10 are \ufffd[2J loading on w-b\n"
        process.send_signal(signal.SIGINT)
        out, err = await process.communicate()
    assert (process.returncode, out) == (130, b"abc\n")
    assert err.startswith(b"3 tokens (cancelled), ")
    await cluster.until_closed("failed")


async def test_a_deadline_in_a_wait_is_exit_code_10_and_names_what_was_waited_for(
    program: Program, cluster: ScriptedCluster
) -> None:
    cluster.has_route.clear()
    ended = await program.run("generate", "x", "--timeout", "3")
    assert ended.code == 10
    assert ended.err.startswith("waiting: blocks 0:1 are loading\nerror: ")
    assert ended.err.endswith("waiting: blocks 0:1 are loading\n")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
async def test_a_signal_cancels_on_all_workers_and_tells_how_far_it_came(
    program: Program, cluster: ScriptedCluster, number: signal.Signals, code: int
) -> None:
    cluster.script = Script(answer=tuple(ids_of("abc")), stop_short=True)
    process = await program.start("generate", "x", "--json")
    assert process.stdout is not None
    async with asyncio.timeout(DEADLINE_S):
        for _ in range(3):
            assert "token" in json.loads(await process.stdout.readline())
        process.send_signal(number)
        await cluster.until_closed("cancelled")
        out, err = await process.communicate()
    done = json.loads(out)["done"]
    assert (done["text"], done["finish_reason"], done["completion_tokens"]) == ("abc", "cancelled", 3)
    assert (process.returncode, err) == (code, b"")


async def test_ctrl_c_ends_with_the_summary(program: Program, cluster: ScriptedCluster) -> None:
    cluster.script = Script(answer=tuple(ids_of("abc")), stop_short=True)
    process = await program.start("generate", "x")
    assert process.stdout is not None
    async with asyncio.timeout(DEADLINE_S):
        assert await process.stdout.readexactly(3) == b"abc"
        process.send_signal(signal.SIGINT)
        out, err = await process.communicate()
    assert (process.returncode, out) == (130, b"\n")
    assert err.startswith(b"3 tokens (cancelled), ")


async def test_a_reader_that_goes_cancels_quietly(program: Program, cluster: ScriptedCluster) -> None:
    cluster.script = Script(answer=tuple(ids_of("abc" * 200)), stop_short=True)
    process = await asyncio.create_subprocess_exec(
        "/bin/sh",
        "-c",
        f"{sys.executable} -m client generate x --json --max-tokens 700 | head -n 1",
        env={**program.environ, "PATH": "/usr/bin:/bin"},
        cwd=ROOT,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(DEADLINE_S):
        out, err = await process.communicate()
        assert (out.count(b"\n"), err) == (1, b"")
        await cluster.until_closed("cancelled")
