from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from client.cli import main
from client.cli_options import generation_options
from protocol.api_key import new_api_key
from protocol.errors import ErrorBody
from protocol.messages import PROTOCOL_VERSION, Constraint
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


async def test_text_on_standard_output_and_a_summary_after_it(program: Program, cluster: ScriptedCluster) -> None:
    ended = await program.run("generate", "The capital of France is", "--model", "tiny", "--raw")
    assert (ended.code, ended.out) == (0, " Paris \N{ROCKET}\n")
    (head, _), (tail, _) = cluster.workers
    assert re.search(r" tokens/s, first after \d+\.\d\d s, via ", ended.err)
    assert ended.err.endswith(f" s, via {head} 0:1 float32 -> {tail} 1:10 float32\n")
    assert ended.err.startswith(f"{len(cluster.script.answer)} tokens, ")
    assert cluster.prompt_ids == [0, *ids_of("The capital of France is")]


async def test_json_has_every_token_and_then_everything(program: Program, cluster: ScriptedCluster) -> None:
    ended = await program.run("generate", "x", "--json", "--seed", "5")
    *tokens, last = [json.loads(line) for line in ended.out.splitlines()]
    assert [token["token"] for token in tokens] == list(cluster.script.answer)
    assert "".join(token["text"] for token in tokens) == " Paris \N{ROCKET}"
    done = last["done"]
    assert done["token_ids"] == list(cluster.script.answer)
    assert done["completion_tokens"] == len(cluster.script.answer)
    assert (done["text"], done["finish_reason"], done["failovers"]) == (" Paris \N{ROCKET}", "stop", 0)
    assert done["prompt_tokens"] == len(cluster.prompt_ids)
    assert done["ttft_s"] > 0
    assert done["tokens_per_s"] > 0
    (head, _), (tail, _) = cluster.workers
    formats = {"precision": "float32", "quantization": None, "kv_precision": None}
    assert done["route"] == [
        {"worker_id": head, "start": 0, "end": 1, **formats},
        {"worker_id": tail, "start": 1, "end": 10, **formats},
    ]
    assert done["seed"] == 5
    assert ended.err == ""


async def test_a_chat_model_gets_its_template_and_the_system_message(
    program: Program, cluster: ScriptedCluster
) -> None:
    await program.run("generate", "hi", "--system", "be kind")
    expected = "<s><|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert cluster.prompt_ids == ids_of(expected)


async def test_options_reach_the_tail(program: Program, cluster: ScriptedCluster) -> None:
    options = ["--max-tokens", "9", "--temperature", "0.5", "--top-p", "0.9", "--top-k", "4", "--min-p", "0.1"]
    ended = await program.run(
        "generate", "x", *options, "--repetition-penalty", "1.2", "--seed", "3", "--stop", "zzz", "--stop", "is"
    )
    assert cluster.route_requests[-1].speculate
    sampling = cluster.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.top_k) == (9, 0.5, 0.9, 4)
    assert (sampling.min_p, sampling.repetition_penalty, sampling.seed) == (0.1, 1.2, 3)
    assert ended.out == " Par\n"


async def test_what_openais_clients_ask_reaches_the_tail(
    program: Program, cluster: ScriptedCluster, tmp_path: Path
) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "null"}')
    options = ["--presence-penalty", "0.5", "--frequency-penalty", "-1", "--logit-bias", "7=-100"]
    options += ["--logit-bias", "9=1.5", "--logprobs", "3", "--json"]
    ended = await program.run("generate", "x", *options, "--json-schema", str(schema))
    assert ended.code == 0, ended.err
    sampling = cluster.sampling
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.n_logprobs) == (0.5, -1.0, 3)
    assert sampling.logit_bias == ((7, -100.0), (9, 1.5))
    assert sampling.constraint == Constraint(kind="json_schema", text='{"type": "null"}')
    assert cluster.route_requests[-1].newest_sampling


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--logit-bias", "7"], "--logit-bias 7: it must be ID=VALUE"),
        (["--logit-bias", "7=1", "--logit-bias", "7=2"], "token 7 has a bias already"),
        (["--logprobs", "3"], "--logprobs shows in --json alone"),
        (["--json-schema", "/no/such/file"], "--json-schema /no/such/file can't be read"),
        (["--grammar", "/dev/zero"], "more than the 65536 bytes"),
    ],
)
def test_options_that_cannot_be_are_refused_by_name(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRIGADE_URL", "https://127.0.0.1:1")
    monkeypatch.setenv("BRIGADE_API_KEY", new_api_key("client", "0" * 64).text())
    assert main(["generate", "x", *arguments]) == 2
    assert words in capsys.readouterr().err


async def test_guessing_ahead_can_be_refused(program: Program, cluster: ScriptedCluster) -> None:
    await program.run("generate", "x", "--no-speculate")
    assert not cluster.route_requests[-1].speculate


@pytest.mark.parametrize("asked", [True, False, None])
def test_guessing_ahead_that_was_asked_for_is_said_to_do_nothing_in_private(
    asked: bool | None, capsys: pytest.CaptureFixture[str]
) -> None:
    options = generation_options(stop=(), timeout=1.0, speculate=asked, private=True)
    assert options.speculate == (asked is not False)
    assert ("--speculate does nothing with --private" in capsys.readouterr().err) == (asked is True)


@pytest.mark.parametrize("arguments", [["generate", "-", "--raw"], ["generate", "--raw"]])
async def test_the_prompt_comes_from_standard_input(
    program: Program, cluster: ScriptedCluster, arguments: list[str]
) -> None:
    ended = await program.run(*arguments, stdin="h\N{EURO SIGN}\n".encode())
    assert ended.code == 0
    assert cluster.prompt_ids == [0, *ids_of("h\N{EURO SIGN}")]


async def test_what_cant_be_done_is_said_before_a_prompt_is_typed(program: Program) -> None:
    process = await program.start("generate", "--logprobs", "2")
    assert process.stderr is not None
    assert b"--logprobs shows in --json alone" in await process.stderr.read()
    assert await process.wait() == 2


@pytest.mark.parametrize(("stdin", "words"), [(b"ab\xff", "not UTF-8 at byte 2"), (b"\n", "empty"), (b"", "empty")])
async def test_standard_input_that_is_no_prompt(program: Program, stdin: bytes, words: str) -> None:
    ended = await program.run("generate", stdin=stdin)
    assert (ended.code, ended.out) == (2, "")
    assert words in ended.err
    assert ended.err.startswith("error: ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["generate", ""], "empty"),
        (["generate", "  "], "empty"),
        (["generate", "x", "--temperature", "-1"], "temperature"),
        (["generate", "x", "--temperature", "nan"], "temperature"),
        (["generate", "x", "--max-tokens", "0"], "max_tokens"),
        (["generate", "x", "--max-tokens", "-5"], "max_tokens"),
        (["generate", "x", "--max-tokens", "many"], "--max-tokens"),
        (["generate", "x", "--top-p", "1.01"], "top_p"),
        (["generate", "x", "--timeout", "0"], "timeout"),
        (["generate", "x", "--stop", ""], "stop string"),
        (["generate", "x", "--raw", "--system", "y"], "--system"),
        (["generate", "x", "--url", "http://plain:1"], "TLS"),
        (["generate", "x", "--no-such"], "--no-such"),
        (["nothing"], "nothing"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.setenv("BRIGADE_URL", "https://127.0.0.1:1")
    monkeypatch.setenv("BRIGADE_API_KEY", new_api_key("client", "0" * 64).text())
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert words in err


def test_nobody_at_the_address_is_exit_code_3(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRIGADE_API_KEY", new_api_key("client", "0" * 64).text())
    assert main(["generate", "x", "--url", "https://127.0.0.1:1", "--connect-timeout", "0"]) == 3
    assert "no coordinator answers at https://127.0.0.1:1" in capsys.readouterr().err


def test_prints_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("brigade ")


async def test_a_model_that_is_not_there_is_exit_code_2(program: Program) -> None:
    ended = await program.run("generate", "x", "--model", "other")
    assert (ended.code, ended.out) == (2, "")
    assert "there are tiny" in ended.err


async def test_a_model_that_is_not_available_is_exit_code_7(program: Program, cluster: ScriptedCluster) -> None:
    cluster.script = Script(route_error=ErrorBody(code="model_unavailable", message="blocks 3:5 are missing"))
    ended = await program.run("generate", "x")
    assert (ended.code, ended.err) == (7, "error: blocks 3:5 are missing\n")


async def test_a_deadline_is_exit_code_10(program: Program, cluster: ScriptedCluster) -> None:
    cluster.script = Script(answer=tuple(ids_of("abc")), stop_short=True)
    assert (await program.run("generate", "x", "--timeout", "0.5")).code == 10


async def test_a_key_that_the_coordinator_does_not_know_is_exit_code_4(
    program: Program, cluster: ScriptedCluster
) -> None:
    program.environ["BRIGADE_API_KEY"] = new_api_key("client", cluster.authority.fingerprint).text()
    assert (await program.run("models")).code == 4


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


async def test_several_models_need_a_choice_and_none_says_what_to_do(
    program: Program, cluster: ScriptedCluster
) -> None:
    cluster.model_names = ["tiny", "other"]
    ended = await program.run("generate", "x")
    assert (ended.code, "tiny, other" in ended.err) == (2, True)
    cluster.model_names = []
    ended = await program.run("generate", "x")
    assert (ended.code, "coord model add" in ended.err) == (2, True)


async def test_lists_models(program: Program) -> None:
    ended = await program.run("models")
    header, line = ended.out.splitlines()
    assert header.split() == ["NAME", "KIND", "STATE", "BLOCKS", "CONTEXT", "SIZE", "CHAT"]
    assert line.split() == ["tiny", "decoder", "ready", "10", "1000", "10.0", "MB", "yes"]
    ended = await program.run("models", "--json")
    assert json.loads(ended.out)["models"][0]["name"] == "tiny"


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


async def test_another_protocol_version_is_exit_code_5(
    program: Program, cluster: ScriptedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.support.scripted_cluster.PROTOCOL_VERSION", "9.0")
    ended = await program.run("models")
    assert ended.code == 5
    assert "9.0" in ended.err
    assert PROTOCOL_VERSION in ended.err


async def test_timings_say_where_the_time_went_and_in_which_trace(
    program: Program, cluster: ScriptedCluster
) -> None:
    traceparent = f"00-{'ab' * 16}-{'cd' * 8}-01"
    ended = await program.run(
        "generate", "a", "--model", "tiny", "--raw", "--timings", "--traceparent", traceparent
    )
    assert ended.code == 0
    *_, phases, of_stages, trace = ended.err.splitlines()
    assert phases.startswith("prepare ")
    assert " + prefill " in phases
    assert "older than 1.2" in of_stages  # the scripted workers say nothing of it
    assert trace == f"trace {'ab' * 16}"
    opening = cluster.latest.opening
    assert opening is not None
    assert opening.traceparent.startswith(f"00-{'ab' * 16}-")
    assert opening.traceparent != traceparent  # a span of its own

    program.environ["TRACEPARENT"] = "of yesterday"
    refused = await program.run("generate", "a", "--model", "tiny")
    assert refused.code == 2
    assert "--traceparent 'of yesterday' is no W3C traceparent" in refused.err
