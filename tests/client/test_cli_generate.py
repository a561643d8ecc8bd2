"""`client generate`: what it asks of the workers, and what it prints."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from client.cli import main
from client.cli_options import generation_options
from protocol.api_key import new_api_key
from protocol.messages import Constraint
from tests.support.client_program import Program, cluster, program
from tests.support.scripted_cluster import ScriptedCluster
from tests.support.tiny_tokenizer import ids_of

__all__ = ["cluster", "program"]


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


@pytest.mark.parametrize(("stdin", "words"), [(b"ab\xff", "not UTF-8 at byte 2"), (b"\n", "empty"), (b"", "empty")])
async def test_standard_input_that_is_no_prompt(program: Program, stdin: bytes, words: str) -> None:
    ended = await program.run("generate", stdin=stdin)
    assert (ended.code, ended.out) == (2, "")
    assert words in ended.err
    assert ended.err.startswith("error: ")


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
