"""What a person does with the three programs, and that the tokens are transformers' own."""

from __future__ import annotations

import json
import signal
import subprocess
from typing import Any

import pytest

from demo.local_cluster import BIN, LocalCluster, polls
from protocol import exit_codes
from tests.e2e.conftest import MODEL, SPLIT
from tests.support.smollm2 import Reference

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
PROMPT = "The capital of France is"
N_TOKENS = 64


def generated(
    cluster: LocalCluster, *arguments: str, stdin: bytes = b""
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """`client generate --json`: the tokens and what `done` says."""
    done = cluster.run("client", "generate", *arguments, "--model", MODEL, "--json", stdin=stdin)
    assert done.returncode == 0, done.stderr.decode()
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return lines[:-1], lines[-1]["done"]


def test_three_processes_give_the_tokens_of_transformers(
    cluster: LocalCluster, smollm2_reference: Reference
) -> None:
    tokens, done = generated(cluster, PROMPT, "--max-tokens", str(N_TOKENS), "--temperature", "0")
    ids, text = smollm2_reference.chat.ids, smollm2_reference.chat.text
    assert done["token_ids"] == ids
    assert [token["token"] for token in tokens] == ids
    assert done["text"] == text
    assert "".join(token["text"] for token in tokens) == text
    assert done["completion_tokens"] == len(ids)
    assert done["finish_reason"] == ("length" if len(ids) == N_TOKENS else "stop")
    assert [f"{hop['start']}:{hop['end']}" for hop in done["route"]] == list(SPLIT)
    assert {hop["precision"] for hop in done["route"]} == {"float32"}
    assert done["failovers"] == 0


def test_the_prompt_may_come_from_standard_input(cluster: LocalCluster) -> None:
    _, by_argument = generated(cluster, PROMPT, "--max-tokens", "8", "--temperature", "0")
    _, by_input = generated(cluster, "--max-tokens", "8", "--temperature", "0", stdin=PROMPT.encode())
    assert by_input["token_ids"] == by_argument["token_ids"]


def test_a_seed_repeats_a_sampled_answer(cluster: LocalCluster) -> None:
    options = ("--max-tokens", "16", "--temperature", "1.2", "--top-p", "0.95")
    _, one = generated(cluster, PROMPT, *options, "--seed", "7")
    _, again = generated(cluster, PROMPT, *options, "--seed", "7")
    _, other = generated(cluster, PROMPT, *options, "--seed", "8")
    assert one["token_ids"] == again["token_ids"]
    assert one["token_ids"] != other["token_ids"]


def test_people_see_the_text_and_one_line_about_it(cluster: LocalCluster) -> None:
    options = ("--max-tokens", "8", "--temperature", "0")
    done = cluster.run("client", "generate", PROMPT, "--model", MODEL, *options)
    assert done.returncode == 0
    assert done.stdout.decode().strip() == generated(cluster, PROMPT, *options)[1]["text"].strip()
    shown = (done.stdout + done.stderr).decode()
    assert "8 tokens" in shown
    assert "tokens/s" in shown
    for blocks in SPLIT:
        assert blocks in shown


def test_status_says_who_holds_what(cluster: LocalCluster) -> None:
    shown = cluster.run("coord", "status").stdout.decode()
    for blocks in SPLIT:
        assert blocks in shown
    status = cluster.status()
    assert [model["state"] for model in status["models"]] == ["ready"]
    assert {worker["state"] for worker in status["workers"]} == {"ready"}


def test_an_interrupt_cancels_on_all_workers_and_exits_with_130(cluster: LocalCluster) -> None:
    command = [
        str(BIN / "client"),
        "generate",
        "Count from 1 to 1000.",
        "--model",
        MODEL,
        "--max-tokens",
        "1500",
        "--json",
    ]
    with subprocess.Popen(
        command, env=cluster.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()  # the first token is there: every worker holds the session
        assert {worker["n_sessions"] for worker in settled(cluster, 1)} == {1}
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read().splitlines()
    assert process.returncode == exit_codes.EXIT_CANCELLED
    assert json.loads(rest[-1])["done"]["finish_reason"] == "cancelled"
    assert {worker["n_sessions"] for worker in settled(cluster, 0)} == {0}


def settled(cluster: LocalCluster, n_sessions: int) -> list[dict[str, Any]]:
    """The workers, once all of them report so many sessions (heartbeats take a second)."""
    workers: list[dict[str, Any]] = []
    for _ in polls(15):
        workers = cluster.status()["workers"]
        if all(worker["n_sessions"] == n_sessions for worker in workers):
            break
    return workers


@pytest.mark.parametrize(
    ("arguments", "exit_code", "words"),
    [
        (["", "--model", MODEL], exit_codes.EXIT_USAGE, "empty"),
        (["x", "--model", "nobody"], exit_codes.EXIT_USAGE, MODEL),
        (["x", "--model", MODEL, "--max-tokens", "0"], exit_codes.EXIT_USAGE, "max"),
        (["x", "--model", MODEL, "--max-tokens", "-3"], exit_codes.EXIT_USAGE, "max"),
        (["x", "--model", MODEL, "--max-tokens", "999999"], exit_codes.EXIT_USAGE, "999999"),
        (["x", "--model", MODEL, "--temperature", "-1"], exit_codes.EXIT_USAGE, "temperature"),
        (["x", "--model", MODEL, "--temperature", "nan"], exit_codes.EXIT_USAGE, "temperature"),
        (["x " * 9000, "--model", MODEL], exit_codes.EXIT_USAGE, "context"),
        (
            ["x", "--url", "https://127.0.0.1:9", "--connect-timeout", "0"],
            exit_codes.EXIT_UNREACHABLE,
            "127.0.0.1:9",
        ),
    ],
)
def test_bad_input_gets_a_sentence_and_its_exit_code(
    cluster: LocalCluster, arguments: list[str], exit_code: int, words: str
) -> None:
    done = cluster.run("client", "generate", *arguments)
    said = done.stderr.decode()
    assert done.returncode == exit_code, said
    assert words in said
    assert "Traceback" not in said


def test_a_prompt_that_is_no_utf_8_is_refused(cluster: LocalCluster) -> None:
    done = cluster.run("client", "generate", "--model", MODEL, stdin=b"caf\xe9")
    assert done.returncode == exit_codes.EXIT_USAGE
    assert "UTF-8" in done.stderr.decode()
