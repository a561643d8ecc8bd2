from __future__ import annotations

import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from protocol.errors import ErrorBody
from tests.support.client_program import Program
from tests.support.scripted_cluster import Script, ScriptedCluster, scripted_cluster

ANSWER = Script(answer=(7, 8, 9), finish="length")
SMALL = ("--prompt-tokens", "12", "--max-tokens", "3")


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[ScriptedCluster]:
    async with scripted_cluster(tmp_path) as running:
        running.script = ANSWER
        yield running


async def test_a_table_for_people_and_json_for_programs(cluster: ScriptedCluster, tmp_path: Path) -> None:
    program = Program(cluster, tmp_path)
    ended = await program.run("bench", "tiny", "--streams", "1,2", *SMALL)
    assert (ended.code, ended.err) == (0, "")
    assert "tokens/s a stream" in ended.out
    ended = await program.run("bench", "--streams", "2", "--json", *SMALL)
    report = json.loads(ended.out)
    assert (report["model"], report["is_interrupted"]) == ("tiny", False)
    assert [(level["n_streams"], level["n_tokens"]) for level in report["levels"]] == [(2, 6)]


async def test_an_interruption_shows_what_was_measured(cluster: ScriptedCluster, tmp_path: Path) -> None:
    cluster.attempts = [ANSWER, Script(answer=(7, 8), stop_short=True)]
    process = await Program(cluster, tmp_path).start("bench", "--streams", "1", "--json", *SMALL)
    await cluster.until(lambda: len(cluster.seen) == 2 and cluster.latest.is_sending)
    process.send_signal(signal.SIGINT)
    out, _ = await process.communicate()
    assert process.returncode == 130
    report = json.loads(out)
    assert report["is_interrupted"]
    assert report["levels"][0]["n_interrupted"] == 1


async def test_a_level_that_failed_is_told_by_the_exit_code(cluster: ScriptedCluster, tmp_path: Path) -> None:
    full = ErrorBody(code="invalid_request", message="your key may have one stream")
    cluster.attempts = [*[ANSWER] * 4, *[Script(head_ends_with=full)] * 2]
    ended = await Program(cluster, tmp_path).run("bench", "--streams", "1,2", "--no-speculate", *SMALL)
    assert (ended.code, ended.err) == (7, f"2 failed: {full.message}\n")
    assert "tokens/s a stream" in ended.out
    assert not any(request.speculate for request in cluster.route_requests)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--streams", "1;2"), 2, "separated by commas"),
        (("--prompt-tokens", "9999999"), 2, "--prompt-tokens"),
        (("--max-tokens", "1"), 2, "tokens of an answer is 1"),
    ],
)
async def test_bad_input_is_one_line(
    cluster: ScriptedCluster, tmp_path: Path, arguments: tuple[str, ...], code: int, words: str
) -> None:
    ended = await Program(cluster, tmp_path).run("bench", *arguments)
    assert ended.code == code
    assert words in ended.err
    assert ended.err.count("\n") == 1
